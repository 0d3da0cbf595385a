"""A device that is not there: tensors on the CPU that say they live elsewhere, and refuse to mix.

Everything that a GPU refuses is refused: an operation on tensors of both places (but for numbers,
tensors without axes), `numpy()`, a generator of the CPU for numbers drawn elsewhere. Numbers are
the CPU's. What is left to a real GPU is its arithmetic, and its own missing operations.
"""

import contextlib
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

ELSEWHERE = torch.device("meta")


class Elsewhere(torch.Tensor):
    """A tensor there; `held` is what it is here."""

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(),
            dtype=held.dtype, device=ELSEWHERE, requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self):
        return f"Elsewhere({self.held})"

    # Of these torch asks the device's driver, of which there is none.
    def __float__(self):
        return float(self.held)

    def __int__(self):
        return int(self.held)

    def __bool__(self):
        return bool(self.held)

    def item(self):
        return self.held.item()

    def tolist(self):
        return self.held.tolist()

    def numpy(self, **_):
        raise TypeError(f"cannot convert a tensor of {ELSEWHERE} to numpy: use .cpu() first.")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Pretend(TorchDispatchMode):
    """Factories that are asked for the device elsewhere make their tensors there."""

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # or torch loads its compiler, for seconds

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class PretendOfNumbers(TorchFunctionMode):
    """`torch.tensor` and `torch.as_tensor`, which make what they are given without a dispatch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == ELSEWHERE:
            return Elsewhere(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


def run(func, args, kwargs):
    """The operation on what the tensors hold, and its result where it belongs."""
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, Elsewhere)]
    asked = kwargs.get("device")
    moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    if there and not moves:
        # Indices may lie here, as for a GPU; so may numbers.
        may_mix = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_)
        mixed = [t for t in tensors if not isinstance(t, Elsewhere) and t.ndim and not may_mix]
        if mixed:
            raise RuntimeError(f"{func}: tensors of two devices, {ELSEWHERE} and {mixed[0].device}")
    generator = kwargs.get("generator")
    to_there = asked is not None and torch.device(asked).type == ELSEWHERE.type
    if generator is not None and (to_there or there) and generator.device.type == "cpu":
        raise RuntimeError(f"{func}: a generator of the CPU cannot draw for {ELSEWHERE}")
    if to_there:
        kwargs = {**kwargs, "device": "cpu"}
    unwrapped = tree_map_only(Elsewhere, lambda t: t.held, (args, kwargs))
    found = func(*unwrapped[0], **unwrapped[1])
    if func.overloadpacket is torch.ops.aten.copy_:
        return args[0]
    stays = to_there if asked is not None else bool(there)
    if not stays:
        return found
    own = {id(t.held): t for t in there}  # what was changed in place is the same tensor still
    return tree_map_only(
        torch.Tensor, lambda t: own[id(t)] if id(t) in own else Elsewhere(t), found
    )


@contextlib.contextmanager
def pretended():
    """Within the body, `device=ELSEWHERE` and `.to(ELSEWHERE)` lead to the pretended one."""
    known = [ELSEWHERE.type, "cpu", "cuda"]  # to optimizers that ask where they may be fused
    where = "torch.optim.optimizer._get_fused_kernels_supported_devices"
    with mock.patch(where, return_value=known), PretendOfNumbers(), Pretend():
        yield ELSEWHERE
