"""The bookkeeping under every subspace optimizer: groups, names, constraints, checkpoints."""

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from spanwise.atlas import Atlas
from spanwise.layouts import Layout, layout_of, stored_matrix
from spanwise.optim._bases.kinds import BASES
from spanwise.optim._engine.checkpoints import check_checkpoint
from spanwise.optim._engine.groups import (
    Member,
    check_layouts,
    check_rank,
    param_groups,
    resolve_aliases,
    resolve_side,
)
from spanwise.optim._engine.options import (
    GALORE_SIDES,
    GROUP_DEFAULTS,
    MOMENT_RULES,
    RESIDUALS,
    SIDES,
    SVD_METHODS,
    CommonOptions,
    check_choice,
    check_count,
    check_keys,
    check_number,
    check_switch,
)
from spanwise.optim._engine.residual import check_residual
from spanwise.optim._guard.constraint import BiasRule
from spanwise.optim._guard.constraints import Constraints, merge_names
from spanwise.optim._report import COUNTERS, OptimizerReport, build_report
from spanwise.optim._sharding.shard import Shard, is_sharded, own_part, spread_as


class GroupedOptimizer(Optimizer):
    """Groups with and without a rank, each parameter by name, held to its constraint.

    `RefreshingOptimizer` adds bases, `SubspaceOptimizer` the step.
    """

    method = "subspace"
    """Name in reports and messages."""
    aliases: ClassVar[dict[str, str]] = {}
    """A paper's group keys and ours."""
    choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Values that this class takes, where they are fewer or others than the engine's."""
    needs_rank: ClassVar[bool] = True
    """Whether the method works in a subspace, so that its groups must have a rank."""
    group_key: ClassVar[str] = "rank"
    """The option by which a group asks to be treated, for messages."""
    fixed: ClassVar[tuple[str, ...]] = ("rank", "side", "basis")
    """Group keys that give the state its shapes: a checkpoint must agree on them."""
    group_keys: ClassVar[tuple[str, ...]] = ()
    """Options that only groups have, not the constructor."""
    switches: ClassVar[tuple[str, ...]] = ("stagger",)
    """Options that are True or False."""

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        compat: str | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:
        options: dict[str, Any] = {
            key: common[key] for key in CommonOptions.__annotations__ if key in common
        }
        if unknown := sorted(set(common) - set(options)):
            raise TypeError(self._no_option(unknown[0]))
        on_nonfinite = options.pop("on_nonfinite", "keep")
        check_choice("on_nonfinite", on_nonfinite, ("keep", "raise"))
        if isinstance(options.get("seed", 0), bool) or not isinstance(options.get("seed", 0), int):
            raise TypeError(f"seed must be an int, got {options['seed']!r}.")
        if compat is not None:
            check_choice("compat", compat, ("galore_torch",))
        self.seed, self.on_nonfinite, self.compat = options.pop("seed", 0), on_nonfinite, compat
        self._clamp_rank = options.pop("clamp_rank", False)
        check_switch("clamp_rank", self._clamp_rank)
        rules = {key: options.pop(key) for key in ("avoid", "within", "bias") if key in options}
        defaults = {**GROUP_DEFAULTS, **defaults, **options}
        self._members: dict[int, list[Member]] = {}
        self._warned_nonfinite = False
        self._constraints = Constraints()
        self._rules: dict[str, Any] = {}
        self._selected: dict[str, tuple[Tensor, Any, Any]] = {}
        defaults["side"] = GALORE_SIDES.get(defaults["side"], defaults["side"])
        super().__init__(params, defaults)
        if not any(self.is_projected(group) for group in self.param_groups):
            raise ValueError(
                f"{type(self).__name__} has nothing to project: no parameter group has a "
                f"{self.group_key}. Use spanwise.optim.param_groups(model, "
                f"rank={128 if self.needs_rank else None}), or torch.optim.AdamW."
            )
        self.set_constraints(**rules)

    def _no_option(self, name: str) -> str:
        own = [k for k in inspect.signature(type(self).__init__).parameters if k != "self"]
        ours = self.aliases.get(name)
        hint = f" ({name} is a key of groups; as an argument it is {ours})" if ours else ""
        options = ", ".join([*own[1:-1], *CommonOptions.__annotations__])
        return f"{type(self).__name__} has no option {name!r}{hint}; its options are {options}."

    # -- groups ---------------------------------------------------------------------------

    @classmethod
    def groups_of(
        cls, model: nn.Module, rank: int, *, plain: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """The parameter groups that suit this method."""
        return param_groups(model, rank, plain=plain)

    def is_projected(self, group: Mapping[str, Any]) -> bool:
        """Whether this group is treated by the method; any other group is plain AdamW."""
        return bool(group["rank"])

    def check_options(self, group: dict[str, Any]) -> None:
        """Raise if a projected group's own options are bad; a class adds its own checks."""

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; a group with a `rank` is projected, any other is plain AdamW."""
        group = dict(param_group)
        resolve_aliases(group, self.aliases)
        check_keys(
            group,
            (*self.defaults, *self.group_keys),
            self.choices.get("basis", BASES),
            self.aliases,
        )
        super().add_param_group(group)
        group = self.param_groups[-1]
        self._members.clear()
        try:
            self._check_group(group)
            if self._rules:
                self._constraints = Constraints.resolve(merge_names(self, None), **self._rules)
                self._fit_ranks()
        except (TypeError, ValueError, NotImplementedError):
            self.param_groups.pop()
            self._members.clear()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        for key in ("lr", "eps", "weight_decay"):
            check_number(key, group[key], 0)
        for key in self.switches:
            check_switch(key, group[key])
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}.")
        for i, beta in enumerate(betas):
            number = isinstance(beta, (int, float)) and not isinstance(beta, bool)
            if not number or not 0 <= beta < 1:
                raise ValueError(f"betas[{i}] must be in [0, 1), got {beta}.")
        if group["rank"] is not None:
            check_rank(group["rank"])
        if not self.is_projected(group):
            return
        known = {
            "side": SIDES, "svd": SVD_METHODS, "moments": MOMENT_RULES, "residual": RESIDUALS,
            "basis": tuple(BASES), "init": (None, *BASES), **self.choices,
        }  # fmt: skip
        for key, values in known.items():
            check_choice(key, group[key], values)
        _check_selecting(group)
        if group["refresh_every"] is not None:
            check_count("refresh_every", group["refresh_every"])
        check_count("refresh_warmup", group["refresh_warmup"], 0)
        check_number("scale", group["scale"], 0, above=True)
        check_residual(group, selects=BASES[group["basis"]].selects)
        self.check_options(group)
        names = group.get("param_names") or [f"#{i}" for i in range(len(group["params"]))]
        for name, p, layout in zip(names, group["params"], check_layouts(group), strict=True):
            if p.is_complex():
                raise TypeError(f"parameter {name} is complex; only real weights are projected.")
            if is_sharded(p):
                self._check_sharded(group, name, p, layout)
            if "embed" in name:
                warnings.warn(
                    f"{name} looks like an embedding table; its gradient has few non-zero rows "
                    "and no low-dimensional subspace. Leave it to a group without rank.",
                    stacklevel=4,
                )
            smallest = min(stored_matrix(p.detach(), layout).shape[-2:])
            if (group["rank"] or 0) > smallest and not self._clamp_rank:
                raise ValueError(
                    f"rank = {group['rank']} exceeds min(m, n) = {smallest} for parameter {name} "
                    f"of shape {tuple(p.shape)}. Lower rank, exclude the parameter with a second "
                    "group, or pass clamp_rank=True."
                )

    def _check_sharded(self, group: dict[str, Any], name: str, p: Tensor, layout: Layout) -> None:
        sizes = stored_matrix(p.detach(), layout).shape[-2:]
        try:
            Shard.of(p)
            gap = self.sharding_gap(group, *sizes)
        except NotImplementedError as error:
            gap = str(error)
        if layout.startswith("experts"):
            gap = "stacked experts of which a process holds some are not supported"
        if gap is not None:
            raise NotImplementedError(
                f"parameter {name} is sharded over processes (DTensor), and {gap}. Leave it to a "
                "group without rank, or train on one process or with DDP."
            )

    def sharding_gap(self, group: Mapping[str, Any], rows: int, cols: int) -> str | None:
        """Why this group cannot treat a rows x cols weight whose rows are spread; None if it can.

        Args:
            group: Its options.
            rows: Rows of the whole stored matrix.
            cols: Columns of the stored matrix.
        """
        side = resolve_side(group["side"], rows, cols)
        if group["rank"] and BASES[group["basis"]].selects and side == "left":
            return 'rows are selected across processes; select columns with side="local" instead'
        return None

    def spread_state(self, group: Mapping[str, Any], member: Member) -> tuple[str, ...]:
        """The keys of a sharded parameter's state that are spread as its rows are."""
        if not self.is_projected(group):
            return ("exp_avg", "exp_avg_sq")
        right = resolve_side(group["side"], *member.matrix_shape) == "right"
        return ("basis_left", "exp_avg", "exp_avg_sq") if right else ("basis_left",)

    def _group_members(self, index: int) -> list[Member]:
        if index not in self._members:
            group = self.param_groups[index]
            first = sum(len(g["params"]) for g in self.param_groups[:index])
            names = group.get("param_names") or [
                f"#{first + i}" for i in range(len(group["params"]))
            ]
            layouts: list[Layout] = (
                check_layouts(group)
                if self.is_projected(group)
                else [layout_of(p) or "linear" for p in group["params"]]
            )
            self._members[index] = [
                Member(name, p, layout, first + i)
                for i, (name, p, layout) in enumerate(
                    zip(names, group["params"], layouts, strict=True)
                )
            ]
        return self._members[index]

    # -- constraints ----------------------------------------------------------------------

    def set_constraints(
        self,
        *,
        avoid: Atlas | None = None,
        within: Atlas | None = None,
        bias: BiasRule = "freeze",
    ) -> None:
        """Replace what updates avoid and stay within; every basis is redrawn at the next step."""
        if avoid is None and within is None:
            self._constraints = Constraints()
            self._rules = {}
        else:
            named = merge_names(self, None)
            self._constraints = Constraints.resolve(named, avoid, within, bias=bias)
            self._rules = {"avoid": avoid, "within": within, "bias": bias}
            self._fit_ranks()
        for state in self.state.values():
            if "refreshed" in state:
                state["refreshed"].fill_(-1)

    def _fit_ranks(self) -> None:
        clipped = []
        for member, group in self._projected():
            free = self._free_rank(member)
            if 0 < free < (group["rank"] or 0):
                clipped.append((member.name, free))
        if clipped:
            name, free = clipped[0]
            warnings.warn(
                f"{len(clipped)} parameters have fewer free directions than rank and use what is "
                f"left, the first: {name} with rank {free}. A lower rank or a smaller atlas "
                "silences this.",
                stacklevel=5,
            )

    def _free_rank(self, member: Member) -> int:
        rows, cols = member.matrix_shape
        constraint = self._constraints.get(member.name, member.parameter)
        if constraint is None:
            return min(rows, cols)
        left = rows if constraint.rows is None else constraint.rows.free
        right = cols if constraint.columns is None else constraint.columns.free
        return min(left, right)

    def rank_of(self, member: Member, group: dict[str, Any]) -> int:
        """The rank in use: the group's, clipped to what the matrix and the constraint leave."""
        return min(group["rank"] or 0, self._free_rank(member))

    def _projected(self) -> Iterator[tuple[Member, dict[str, Any]]]:
        for i, group in enumerate(self.param_groups):
            if self.is_projected(group):
                for member in self._group_members(i):
                    yield member, group

    def _state_dtype(self, p: Tensor) -> torch.dtype:
        # A basis rounded to bfloat16 would lead 4e-3 of every update out of the constraint.
        if (self.compat and not len(self._constraints)) or p.dtype == torch.float64:
            return p.dtype
        return torch.float32

    # -- checkpoints and reports ----------------------------------------------------------

    @override
    def __getstate__(self) -> dict[str, Any]:
        # torch keeps only state and groups; a copy without its constraints would not be guarded.
        own: dict[str, Any] = {**self.__dict__, **super().__getstate__()}
        own |= {"_members": {}, "_selected": {}}
        # A scheduler hides `step` behind a function that steps the optimizer it was built with: a
        # copy would train the original, and no pickle takes it.
        own.pop("step", None)
        return own

    @override
    def state_dict(self) -> dict[str, Any]:
        """The state by parameter; what is sharded with a weight is a DTensor like it.

        torch.distributed.checkpoint saves and loads that at any number of processes.
        """
        found = super().state_dict()
        for i, group in enumerate(self.param_groups):
            for member in self._group_members(i):
                p, own = member.parameter, found["state"].get(member.index)
                if own is None or not is_sharded(p):
                    continue
                keys, projected = self.spread_state(group, member), self.is_projected(group)
                found["state"][member.index] = {
                    key: spread_as(
                        value, p, (p.shape[0], *value.shape[1:]) if projected else p.shape
                    )
                    if key in keys
                    else value
                    for key, value in own.items()
                }
        return found

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; float32 bases and moments of half-precision weights stay float32.

        Raises:
            ValueError: If the saved groups have another rank, side or method than this
                optimizer's, name other parameters, or hold moments of other shapes.
        """
        check_checkpoint(self, state_dict)  # pyrefly: ignore
        super().load_state_dict(state_dict)
        for group in self.param_groups:  # a checkpoint from before an option existed
            for key, value in self.defaults.items():
                group.setdefault(key, value)
        self._members.clear()
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        ours = [(m, g) for i, g in enumerate(self.param_groups) for m in self._group_members(i)]
        for i, (member, group) in zip(ids, ours, strict=True):
            p = member.parameter
            for key, value in state_dict["state"].get(i, {}).items():
                # torch casts floating state to the parameter's dtype; ours keeps its own.
                if isinstance(value, Tensor):
                    device = value.device if key in COUNTERS else p.device
                    spread = key in self.spread_state(group, member)
                    if spread and not is_sharded(value) and member.shard is not None:
                        value = member.shard.rows(value)  # from a run without shards
                    self.state[p][key] = own_part(value).to(device, copy=True)
        for member, _ in self._projected():
            state = self.state.get(member.parameter, {})
            if "refreshed" in state and not self._obeys(member, state):
                state["refreshed"].fill_(-1)

    def _obeys(self, member: Member, state: dict[str, Any]) -> bool:
        """Whether a loaded basis keeps the constraint; one saved under another atlas does not."""
        constraint = self._constraints.get(member.name, member.parameter)
        if constraint is None or constraint.frozen:
            return True
        sides = {"basis_left": constraint.rows, "basis_right": constraint.columns}
        for key, allowed in sides.items():
            if allowed is None or key not in state:
                continue
            basis = state[key].to(self._state_dtype(member.parameter))
            tolerance = 1e-5 if basis.dtype == torch.float32 else 1e-10
            excess = (basis - allowed.rows(basis)).square().sum()
            if member.shard is not None and key == "basis_left":
                excess = member.shard.sum(excess)
            if float(excess) > tolerance**2 * basis.shape[-1]:
                return False
        return True

    @classmethod
    def state_numbers(cls, rows: int, cols: int, options: Mapping[str, Any]) -> int:
        """Numbers of state kept for one projected matrix, counters excluded.

        Args:
            rows: Rows of the stored matrix.
            cols: Columns of the stored matrix.
            options: A group's options, `rank` already clipped to the matrix.
        """
        rank, side = options["rank"], resolve_side(options["side"], rows, cols)
        if side == "full":
            return rank * (rows + cols) + 2 * rank * rank
        own, other = (rows, cols) if side == "left" else (cols, rows)
        return rank * own + 2 * rank * other + (options["residual"] != "drop")

    @classmethod
    def plain_numbers(cls, numel: int, options: Mapping[str, Any]) -> int:
        """Numbers of state kept for a tensor of a plain group."""
        return 2 * numel

    def report(self) -> OptimizerReport:
        """What is projected, guarded and left plain, and the bytes of optimizer state."""
        return build_report(self)


def _check_selecting(group: Mapping[str, Any]) -> None:
    """Indices of rows have one side, and cannot follow a dense basis or come before one."""
    basis, init = group["basis"], group["init"]
    selects = BASES[basis].selects
    if selects and group["side"] == "full":
        raise ValueError(
            f'basis = {basis!r} selects from one side, and side="full" asks for both. Choose '
            "another side, or a dense basis such as svd."
        )
    if init is not None and BASES[init].selects != selects:
        raise ValueError(
            f"init = {init!r} and basis = {basis!r} are a selection of rows and a dense basis, and "
            "one cannot become the other. Choose both of one kind, or init=None."
        )
