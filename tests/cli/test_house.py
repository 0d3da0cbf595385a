"""The command line's habits: help, nearest names, exit codes, one-line errors, shared flags."""

import json
import signal
import sys
import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Literal

import pytest
import tyro
import yaml
from sklearn.exceptions import ConvergenceWarning

from spanwise import catalog, cli
from spanwise.cli import _shared


def test_help_lists_every_verb_once_by_job(capsys):
    assert cli.main(["--help"]) == 0
    page = capsys.readouterr().out
    grouped = [verb for verbs in cli.GROUPS.values() for verb in verbs]
    assert sorted(grouped) == sorted(cli.VERBS)
    for verb, (_, line) in cli.VERBS.items():
        assert f"  {verb:<11} {line}\n" in page
    assert max(map(len, page.splitlines())) <= 100
    assert cli.main([]) == 0
    assert capsys.readouterr().out == page


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_listed_verb_exists(verb):
    module, _, function = cli.VERBS[verb][0].partition(":")
    assert callable(getattr(import_module(module), function))


def test_version_is_the_package_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("spanwise 0.")


def test_an_unknown_verb_names_the_nearest_and_exits_2(capsys):
    assert cli.main(["tarin"]) == 2
    assert capsys.readouterr().err == "spanwise: unknown verb 'tarin': did you mean 'train'?\n"


def _fails_with(error):
    def call():
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("rank must be positive."), "rank must be positive."),
        (TypeError("want a Tensor."), "want a Tensor."),
        (FileNotFoundError(2, "No such file", "a.txt"), "a.txt: No such file"),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_1(error, line, capsys, monkeypatch):
    monkeypatch.delenv("SPANWISE_TRACEBACK", raising=False)
    assert cli.guarded(_fails_with(error), prog="spanwise x") == 1
    assert capsys.readouterr().err == f"spanwise x: error: {line}\n"


def test_a_missing_extra_is_told_with_its_install_line(capsys, monkeypatch):
    monkeypatch.delenv("SPANWISE_TRACEBACK", raising=False)
    error = ModuleNotFoundError("No module named 'peft'", name="peft")
    assert cli.guarded(_fails_with(error), prog="spanwise x") == 1
    assert "pip install 'spanwise[adapters]'" in capsys.readouterr().err


def test_a_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("SPANWISE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="boom"):
        cli.guarded(_fails_with(ValueError("boom")), prog="spanwise x")


def test_our_own_faults_keep_their_traceback(monkeypatch):
    monkeypatch.delenv("SPANWISE_TRACEBACK", raising=False)
    with pytest.raises(KeyError):
        cli.guarded(_fails_with(KeyError("ours")), prog="spanwise x")


def test_ctrl_c_exits_130_and_prints_the_resume_line(capsys):
    stop = _shared.Interrupted("spanwise train --config runs/x/config.yaml --resume")
    assert cli.guarded(_fails_with(stop), prog="spanwise train") == 130
    assert "Resume: spanwise train --config runs/x/config.yaml" in capsys.readouterr().err


@dataclass(frozen=True, kw_only=True)
class Options:
    """Do something."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """What to do it to."""
    method: Literal["galore", "adamw"] = "galore"
    """How."""
    lr: float = 1e-3
    """How fast."""
    seed: int = 0
    """Seed."""

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}.")


def _run(argv, seen):
    def verb(config, terminal):
        seen.append(config)
        terminal.say("to people")
        terminal.table(("name", "value"), [("a", 1)])
        terminal.result({"lr": config.lr})

    return _shared.run_verb(Options, argv, verb, prog="spanwise x")


def test_flags_win_over_the_config_file_and_the_file_over_defaults(tmp_path):
    file, seen = tmp_path / "run.yaml", []
    file.write_text("model: tiny\nlr: 1e-2\nseed: 3\n")
    assert _run(["--config", str(file), "--seed", "4"], seen) == 0
    assert seen == [Options(model="tiny", lr=1e-2, seed=4)]
    assert _run(["other", f"--config={file}"], seen) == 0
    assert seen[1] == Options(model="other", lr=1e-2, seed=3)


def test_print_config_shows_what_would_run_and_reads_back(tmp_path, capsys):
    seen = []
    assert _run(["tiny", "--lr", "0.5", "--print-config"], seen) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text) == {"model": "tiny", "method": "galore", "lr": 0.5, "seed": 0}
    assert seen == []
    file = tmp_path / "run.yaml"
    file.write_text(text)
    _run(["--config", str(file)], seen)
    assert seen == [Options(model="tiny", lr=0.5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metod: adamw", "unknown key 'metod': did you mean 'method'?"),
        ("method: adam", "method must be one of 'galore', 'adamw'"),
        ("seed: many", "seed must be a whole number, got 'many'"),
        ("lr: -1\nmodel: tiny", "lr must be positive, got -1.0"),
        ("- a list", "must hold `key: value` lines"),
        ("a: [", "not a readable YAML file"),
    ],
)
def test_a_wrong_config_file_is_a_clear_error(text, message, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"run\.yaml") as caught:
        _run(["tiny", "--config", str(file)], [])
    assert message in str(caught.value)


def test_wrong_usage_exits_2():
    with pytest.raises(SystemExit) as stop:
        _run(["tiny", "--metod", "adamw"], [])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "m", "--lr", "fast"], "--lr must be a number, got 'fast'."),
        (["train", "m", "--rank=1.5"], "--rank must be a whole number, got '1.5'."),
        (["train", "m", "--alpha", "sweeep"],
         "--alpha must be a number or sweep, got 'sweeep': did you mean 'sweep'?"),
        (["merge", "a", "b", "--alpha", "sweeep"], "--alpha must be a number, got 'sweeep'."),
        (["merge", "a", "b", "--weight", "1", "x"], "--weight must be a number, got 'x'."),
        (["merge", "a", "b", "--max_shard_bytes", "2GB"],
         "--max-shard-bytes must be a number, got '2GB'."),
    ],
)  # fmt: skip
def test_a_word_for_a_number_is_told_in_words(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    prog = f"spanwise {argv[0]}"
    assert capsys.readouterr().err == f"{prog}: error: {message}\n"


def test_numbers_that_can_be_read_pass():
    seen = []
    assert _run(["tiny", "--lr", "1e-2", "--seed", "-3", "--method", "adamw"], seen) == 0
    assert seen == [Options(model="tiny", lr=1e-2, seed=-3, method="adamw")]


def test_json_keeps_stdout_for_one_document(capsys):
    _run(["tiny", "--json"], [])
    out, err = capsys.readouterr()
    assert json.loads(out) == {"lr": 1e-3}
    assert err.splitlines() == ["to people", "name  value", "a         1"]


def test_quiet_says_nothing(capsys):
    _run(["tiny", "--quiet"], [])
    assert capsys.readouterr() == ("", "")


def test_a_live_line_is_a_plain_line_in_a_pipe(capsys):
    terminal = _shared.Terminal()
    terminal.live("step 1")
    terminal.live("step 2")
    assert capsys.readouterr().out == "step 1\nstep 2\n"


def test_a_live_line_is_rewritten_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = _shared.Terminal()
    terminal.live("step 10")
    terminal.live("step 9")
    terminal.say("done")
    assert capsys.readouterr().out == "\rstep 10\rstep 9 \ndone\n"


def test_a_pipe_gets_the_whole_table_without_colours(capsys):
    _shared.Terminal().table(("method", "claim"), [("a", "long " * 60), ("bb", "x")])
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("method")
    assert second.rstrip().endswith("long")
    assert third.startswith("bb")


def test_list_shows_every_method(capsys):
    assert cli.main(["list"]) == 0
    page = capsys.readouterr().out
    assert all(card.slug in page for card in catalog.METHODS)
    assert cli.main(["list", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() == catalog.markdown_table()
    assert cli.main(["list", "--family", "no-such"]) == 1


def test_show_tells_claim_entry_points_and_verdict(capsys):
    assert cli.main(["show", "galore2"]) == 0
    page = capsys.readouterr().out
    card = catalog.get("galore2")
    assert card.claim in page
    assert "from spanwise.optim import GaLore" in page
    assert card.verdict in page
    assert cli.main(["show", "galor"]) == 1
    assert "did you mean 'galore2'" in capsys.readouterr().err


def test_cite_prints_one_entry_for_the_library_and_each_method(capsys):
    assert cli.main(["cite"]) == 0
    assert capsys.readouterr().out.count("@") == 1
    assert cli.main(["cite", "galore2"]) == 0
    page = capsys.readouterr().out
    assert "@software{spanwise" in page
    assert "2504.20437" in page


def test_doctor_reports_every_base_package(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    states = {row["what"]: row["state"] for row in findings}
    assert states["torch"] == "ok"
    assert "broken" not in states.values()


def test_doctor_fails_when_a_base_package_is_missing(monkeypatch, capsys):
    from spanwise.cli import doctor

    monkeypatch.setattr(doctor, "BASE", (*doctor.BASE, "no-such-package"))
    assert cli.main(["doctor"]) == 1
    assert "pip install no-such-package" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [UserWarning, ConvergenceWarning])
def test_a_warning_is_a_line_without_a_place_in_our_code(kind, capsys):
    before = warnings.showwarning

    def call():
        warnings.warn("the rank was lowered to 3.", kind, stacklevel=2)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.guarded(call, prog="spanwise x") == 0
    assert capsys.readouterr().err == "spanwise x: warning: the rank was lowered to 3.\n"
    assert warnings.showwarning is before


def test_an_impatient_ctrl_c_after_the_last_line_is_ignored(monkeypatch, capsys):
    def stop(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("spanwise.cli.doctor.main", stop)
    monkeypatch.setattr(sys, "argv", ["spanwise", "doctor"])
    before = signal.getsignal(signal.SIGINT)
    try:
        assert cli.main(["doctor"]) == 130
        assert signal.getsignal(signal.SIGINT) is before  # called from Python: not ours to change
        assert cli.main() == 130
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
