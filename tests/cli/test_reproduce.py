"""`spanwise reproduce` and `spanwise report`, on an experiment of microseconds."""

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from types import ModuleType

import pytest
import yaml

from spanwise import reproductions
from spanwise.cli import main, reproduce
from spanwise.cli._shared import Terminal
from spanwise.report import CellError, Check, Metric, Panel, Result, Verdict


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The experiment."""

    rank: int = 4
    """Rank."""
    seeds: tuple[int, ...] = (100, 101, 102)
    """Seeds that judge."""


def run(settings, *, preset, workers=None, cache=None, progress=None):
    progress(done=0, total=3, reused=0, seconds=0.0)
    progress(done=3, total=3, reused=1, seconds=2.0)
    rows = tuple(
        {"arm": arm, "seed": s, "loss": 1.0 + 0.1 * settings.rank * (arm == "b")}
        for arm in "ab"
        for s in settings.seeds
    )
    losses = [{r["seed"]: r["loss"] for r in rows if r["arm"] == arm} for arm in "ba"]
    check = Check.paired("b is at most 0.5 worse", *losses, high=0.5)
    return Result(
        slug="tiny",
        title="Tiny",
        claim="b keeps up.",
        criterion="b is at most 0.5 worse.",
        criterion_commit=None,
        commit=None,
        preset=preset,
        settings=asdict(settings),
        data={"name": "none", "digest": "00"},
        metrics={"loss": Metric(label="loss", better="lower")},
        arms={"a": "A", "b": "B"},
        rows=rows,
        verdict=Verdict.of([check], fresh_seeds=settings.seeds),
        notes=("a note",),
        environment={},
        wall_seconds=2.0,
    )


@pytest.fixture
def tiny(monkeypatch):
    """A registered experiment called `tiny`."""
    pytest.importorskip("matplotlib")
    module = ModuleType("spanwise.reproductions.tiny")
    module.__dict__.update(
        TITLE="Tiny",
        CLAIM="b keeps up.",
        CRITERION="b is at most 0.5 worse.",
        Settings=Settings,
        PRESETS={"quick": Settings(seeds=(100,)), "default": Settings(), "full": Settings()},
        PANELS=(Panel(lambda ax, result: ax.plot([1, 2]), alt="a line", caption="A line."),),
        run=run,
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(reproductions, "slugs", lambda: ["tiny"])
    return module


def test_a_run_writes_result_figure_and_page_and_prints_the_verdict(tiny, tmp_path, capsys):
    assert main(["reproduce", "tiny", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Verdict: reproduced. All 1 parts of the criterion hold on 3 fresh seeds." in out
    assert "b is at most 0.5 worse" in out
    assert "3/3 runs, 1 from before" in out
    assert "note: a note" in out
    folder = tmp_path / "tiny"
    result = Result.load(folder / "tiny.json")
    assert result.matches(Settings())
    assert (folder / "tiny.svg").read_text().lstrip().startswith("<?xml")
    assert (folder / "tiny.html").read_text().count("prefers-color-scheme: dark") >= 2
    assert yaml.safe_load((folder / "config.yaml").read_text())["settings"]["rank"] == 4
    kinds = [json.loads(line)["event"] for line in (folder / "events.jsonl").open()]
    assert kinds == ["verdict", "done"]


def test_the_experiment_s_own_settings_are_flags(tiny, tmp_path, capsys):
    argv = ["reproduce", "tiny", "--rank", "9", "--seeds", "7", "8", "9", "--out", str(tmp_path)]
    assert main(argv) == 0
    assert "Verdict: not reproduced." in capsys.readouterr().out
    assert Result.load(tmp_path / "tiny" / "tiny.json").settings == {"rank": 9, "seeds": [7, 8, 9]}


def test_a_quick_run_has_its_own_folder_and_no_verdict(tiny, tmp_path, capsys):
    assert main(["reproduce", "tiny", "--quick", "--out", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["verdict"]["outcome"] == "no verdict"
    assert (tmp_path / "tiny-quick" / "tiny.json").exists()


def test_quick_and_full_exclude_each_other(tiny, tmp_path, capsys):
    assert main(["reproduce", "tiny", "--quick", "--full", "--out", str(tmp_path)]) == 1
    assert "exclude each other" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_experiment_names_the_nearest(capsys):
    assert main(["reproduce", "galore22"]) == 1
    assert "did you mean 'galore2'?" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(tiny, tmp_path, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    tiny.run = interrupted
    assert main(["reproduce", "tiny", "--rank", "5", "--out", str(tmp_path)]) == 130
    error = capsys.readouterr().err
    assert f"Resume: spanwise reproduce tiny --rank 5 --out {tmp_path}" in error


def test_wrong_settings_in_a_cell_are_one_line_and_defects_keep_their_traceback(
    tiny, tmp_path, capsys
):
    error = CellError("cell {} failed:\nTraceback ...", "layers = 77: the model has 5.")

    def fails(*args, **options):
        raise error

    tiny.run = fails
    assert main(["reproduce", "tiny", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "spanwise reproduce: error: a run of tiny stopped: layers = 77" in said
    assert "Traceback" not in said
    error = CellError("cell {} failed:\nTraceback ...")
    with pytest.raises(CellError):
        main(["reproduce", "tiny", "--out", str(tmp_path)])


@pytest.mark.bad_input
def test_no_workers_are_refused_before_anything_is_written(tiny, tmp_path, capsys):
    assert main(["reproduce", "tiny", "--workers", "0", "--out", str(tmp_path)]) == 1
    assert "workers must be at least 1, got 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("slug", ["galore2", "demo", "finetune-135m", "gradient-subspaces"])
@pytest.mark.parametrize(
    ("rank", "message"),
    [("0", "rank must be at least 1, got 0"), ("4000", "rank = 4000 is not below the width")],
)
def test_a_rank_that_no_model_has_is_refused_before_anything_is_written(
    slug, rank, message, tmp_path, capsys
):
    pytest.importorskip("transformers")
    assert main(["reproduce", slug, "--rank", rank, "--out", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_sigterm_unwinds_as_ctrl_c_does(tiny, tmp_path, capsys):
    unwound = []

    def terminated(*args, **options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            unwound.append(True)

    tiny.run = terminated
    assert main(["reproduce", "tiny", "--out", str(tmp_path)]) == 143
    assert unwound
    assert f"Resume: spanwise reproduce tiny --out {tmp_path}" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_without_matplotlib_there_is_a_page_without_figures(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["reproduce", "tiny", "--out", str(tmp_path)]) == 0
    assert "no figure: " in capsys.readouterr().out
    assert (tmp_path / "tiny" / "tiny.html").exists()
    assert not (tmp_path / "tiny" / "tiny.svg").exists()


def test_report_builds_one_page_with_fresh_figures(tiny, tmp_path, capsys):
    assert main(["reproduce", "tiny", "--out", str(tmp_path), "--quiet"]) == 0
    assert main(["report", str(tmp_path)]) == 0
    assert f"page: {tmp_path / 'index.html'}" in capsys.readouterr().out
    page = (tmp_path / "index.html").read_text()
    assert 'alt="a line"' in page
    assert "<picture>" in page


def test_report_shows_the_saved_figure_where_none_can_be_drawn(tiny, tmp_path, monkeypatch):
    assert main(["reproduce", "tiny", "--out", str(tmp_path), "--quiet"]) == 0
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "p.html"), "--quiet"]) == 0
    page = (tmp_path / "p.html").read_text()
    assert 'alt="Figure of Tiny"' in page
    assert "data:image/svg+xml" in page


def test_report_on_an_empty_folder_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no results" in capsys.readouterr().err


class Listener(Terminal):
    """Records what it is told."""

    interactive = False

    def __init__(self, interactive):
        super().__init__()
        self.interactive, self.lines = interactive, []

    def live(self, text):
        self.lines.append(text)


def test_a_pipe_gets_few_lines_and_a_terminal_all():
    pipe, terminal = Listener(False), Listener(True)
    for stream in (pipe, terminal):
        line = reproduce.ProgressLine(stream)
        for done in range(11):
            line(done=done, total=10, reused=0, seconds=60.0 * done)
            line(done=done, total=10, reused=0, seconds=60.0 * done)
    assert [text.split(",")[0] for text in pipe.lines] == ["0/10 runs", "5/10 runs", "10/10 runs"]
    assert pipe.lines[1] == "5/10 runs, about 5 min left"
    assert len(terminal.lines) == 22
