"""Options that fit no tensor, before anything is merged."""

from difflib import get_close_matches
from pathlib import Path

from spanwise.merging._job import Job
from spanwise.merging._schedule import Schedule


def check_filters(job: Job) -> None:
    """Raise `ValueError` if a parameter has no value at some tensor."""
    schedules = {key: list(held) for key, held in job.per_model.items()}
    for key in ("t",):
        if hasattr(job.method, key):
            schedules[key] = [Schedule(key, getattr(job.method, key))]
    for key, held in schedules.items():
        for name in job.names:
            if any(schedule(name, 0.0) is None for schedule in held):
                raise ValueError(
                    f"no filter of {key} fits {name!r}: add an entry without a filter."
                )


def check_word(tokenizer: str) -> None:
    """Raise `ValueError` for a misspelt `base` or `union`."""
    near = get_close_matches(tokenizer, ("base", "union"), n=1)
    if near and not Path(tokenizer).expanduser().exists():
        raise ValueError(
            f"tokenizer must be base, union or a folder that has one, got {tokenizer!r}: did you "
            f"mean {near[0]!r}?"
        )


def check_included(job: Job) -> None:
    """Raise `ValueError` if `include` fits no tensor."""
    if not job.names and job.include is not None:
        raise ValueError(
            f"include = {', '.join(job.include)} fits no tensor, so that nothing would be merged: "
            f"the base's begin with {', '.join(job.inputs.names[:2])}."
        )


def unmatched(job: Job) -> list[str]:
    """A note where `exclude` fits no tensor."""
    fits = any(text in name for text in job.exclude for name in job.inputs.names)
    return [] if fits or not job.exclude else [f"exclude = {', '.join(job.exclude)} fits no tensor"]
