"""`spanwise train`."""

from spanwise.cli._shared import Terminal, run_verb
from spanwise.training.config import TrainConfig


def main(argv: list[str]) -> int:
    """Parse the options and run."""
    return run_verb(TrainConfig, argv, run, prog="spanwise train")


def run(config: TrainConfig, terminal: Terminal) -> int:
    """Plan or train, and hand the result over."""
    if config.plan:
        return show_plan(config, terminal)
    from spanwise.training.run import train

    terminal.result(train(config, terminal))
    return 0


def show_plan(config: TrainConfig, terminal: Terminal) -> int:
    """The predicted bytes of every method, and nothing else."""
    import torch

    from spanwise.training.memory import available
    from spanwise.training.planning import plan
    from spanwise.training.telling import plan_rows

    cuda = config.device != "cpu" and torch.cuda.is_available()
    predicted = plan(config)
    columns, rows = plan_rows(predicted, available(torch.device("cuda" if cuda else "cpu")))
    terminal.table(
        columns,
        rows,
        title=f"{predicted.model}: {predicted.parameters / 1e6:.4g} M parameters, rank "
        f"{predicted.rank}, {predicted.batch} sequences of {predicted.sequence} tokens, "
        f"{config.precision}",
    )
    for method, reason in predicted.refused.items():
        terminal.say(f"{method} is left out: {reason}")
    terminal.say(
        "The peak is below the sum, because gradients come while activations go. --batch, "
        "--sequence, --rank and --precision change it."
    )
    terminal.result(predicted)
    return 0
