"""The demo's experiment with a text that is near to what the model knows: the harder case."""

from spanwise.report import Result
from spanwise.reproductions import demo
from spanwise.reproductions._experiment import Run, experiment
from spanwise.reproductions.demo import CLAIM, CRITERION, PANELS, Settings, figure

__all__ = ["CLAIM", "CRITERION", "PANELS", "PRESETS", "TITLE", "Settings", "figure", "run"]

TITLE = "Learning a text that is near to the old one"
PRESETS = demo.presets("python-docs")


@experiment(PRESETS)
def run(this: Run[Settings]) -> Result:
    """As `spanwise.reproductions.demo.run`."""
    return demo.measure(this, slug="demo-near", title=TITLE)
