"""LRAN: coordinates that a network learns, in which the dynamics are linear."""

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from typing_extensions import override

from spanwise.errors import ConvergenceError
from spanwise.estimators._arrays import make_generator
from spanwise.estimators._dynamics import Dynamics, check_common, check_count
from spanwise.estimators._lran.loss import check_loss_options
from spanwise.estimators._lran.module import ACTIVATIONS, LRANModule, make_module
from spanwise.estimators._lran.training import (
    History,
    Optimizer,
    Plan,
    Windows,
    make_optimizer,
    set_options,
    train,
)
from spanwise.estimators._progress import ProgressLine
from spanwise.estimators._trajectories import Trajectories, read_times

FEW_WINDOWS = 10
"""Below so many windows a fit warns."""
BASELINE = 0.95
"""Relative error of the present state from which on a model has learned nothing; the mean has 1."""


class LRAN(Dynamics):
    """Linearly recurrent autoencoder: z = encoder(x), z_{t+1} = z_t K, x ~ decoder(z).

    Encoder, decoder and K are trained together on windows of T states, each forecast from its
    first one, by the relative errors of states and coordinates (`lran_loss`). States are centred
    and scaled by one number.

    Args:
        n_latent: d, the number of coordinates; may exceed n, with a warning.
        hidden: Widths of the encoder's hidden layers; the decoder mirrors them. (): affine maps.
        horizon: T, states of a window, at least 2; training looks T - 1 steps ahead.
        delta: Weight of a step beside the step before, in (0, 1].
        beta: Weight of the coordinates' errors, at least 0.
        eps: Added to every squared norm in the loss, as a share of the mean one; above 0.
        dt: Time between two states.
        time_axis: 0: states in rows; 1: in columns. It also orients results.
        continuous: Learn a generator, K = exp(dt A): `fit` then takes `times`, and `simulate` any.
        activation: `"elu"`, `"gelu"`, `"relu"`, `"silu"` or `"tanh"`.
        module: Your own `LRANModule`, which is copied; `n_latent`, `hidden` and `activation` are
            then not used.
        center: Whether the mean state is taken out.
        max_steps: Batches of `fit`.
        batch_size: Windows of a batch.
        lr: Highest learning rate; it climbs for a tenth of the steps and anneals to 0.
        weight_decay: Of the networks' weights; K has none.
        clip: Norm to which gradients are cut.
        validation_fraction: Share of trajectories that is held out for early stopping; where that
            is none of few, the end of the longest one. 0: nothing.
        patience: Of 50 looks at them, how many in a row without a better one end the training.
        device: Where to train; None: where X is, and arrays on the CPU.
        verbose: Whether to show progress on stderr.
        random_state: Seed or generator of weights and batches; None is seed 0.

    Attributes:
        koopman_matrix_: K, `(d, d)`, with z_{t+1} = z_t K in rows.
        generator_: A, where `continuous`.
        weights_: Of the networks and K, by name: `module_` as tensors.
        module_: The trained `LRANModule`, on scaled states.
        eigenvalues_, continuous_eigenvalues_, modes_: Of K; see the methods of the same names.
        loss_history_: J of every batch.
        validation_history_: Step and held-out J of every look, `(looks, 2)`.
        n_iter_: Batches.
        mean_, scale_: What states are shifted and divided by.
        spectral_radius_: Largest |lambda|.
        n_features_in_: n.

    Raises:
        ValueError: From `fit`, if a parameter or X is out of range.
        ConvergenceError: From `fit`, if the loss diverges at once.

    Sources:
        Otto and Rowley, "Linearly-Recurrent Autoencoder Networks for learning dynamics", 2019.
    """

    _left_out = ("module",)

    weights_: dict[str, Tensor]
    loss_history_: Any
    n_iter_: int
    scale_: float
    _net: LRANModule
    _optimizer: Optimizer | None
    _draws: torch.Generator

    def __init__(
        self,
        n_latent: int = 8,
        *,
        hidden: Sequence[int] = (64, 64),
        horizon: int = 10,
        delta: float = 0.9,
        beta: float = 1.0,
        eps: float = 1e-2,
        dt: float = 1.0,
        time_axis: int = 0,
        continuous: bool = False,
        activation: str = "elu",
        module: LRANModule | None = None,
        center: bool = True,
        max_steps: int = 5000,
        batch_size: int = 64,
        lr: float = 8e-3,
        weight_decay: float = 1e-6,
        clip: float = 1.0,
        validation_fraction: float = 0.1,
        patience: int = 15,
        device: str | None = None,
        verbose: bool = False,
        random_state: Any = None,
    ) -> None:
        self.n_latent = n_latent
        self.hidden = hidden
        self.horizon = horizon
        self.delta = delta
        self.beta = beta
        self.eps = eps
        self.dt = dt
        self.time_axis = time_axis
        self.continuous = continuous
        self.activation = activation
        self.module = module
        self.center = center
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.clip = clip
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, *, times: Any = None) -> "LRAN":
        """Train from fresh weights.

        Args:
            X: One trajectory `(T, n)`, a list of them, or `(trajectories, T, n)`. Windows never
                cross from one into the next.
            y: Ignored.
            times: For `continuous`: when each state was seen, increasing within a trajectory;
                `(T,)` for one or for all of equal lengths, a list, or `(trajectories, T)`. None:
                every `dt`.

        Warns:
            ConvergenceWarning: If the model is hardly better than the mean state, or the loss
                diverged on the way.
            UserWarning: If n_latent exceeds n, or there is hardly a window to learn from.
        """
        with self._all_or_nothing():
            self._check()
            held = self._read(X, reset=True)
            elapsed = self._elapsed(held, times)
            self._check_windows(held)
            self._start(held)
            count = len(held.windows(self.horizon))
            if count < FEW_WINDOWS:
                warnings.warn(
                    f"X has {count} window(s) of horizon = {self.horizon} states: a network learns "
                    "them by heart, and its forecasts mean little. Give longer or more "
                    "trajectories.",
                    UserWarning,
                    stacklevel=2,
                )
            history = self._train(held, elapsed, self.max_steps, one_cycle=True)
        looks = torch.tensor(history.held_out, dtype=held.states.dtype).view(-1, 2)
        self.validation_history_ = held.back(looks)
        if history.diverged:
            warnings.warn(
                f"the loss was no longer finite after {self.n_iter_} steps, so that the weights "
                "are those of an earlier look. Lower lr or clip.",
                ConvergenceWarning,
                stacklevel=2,
            )
        if not history.reconstruction < BASELINE:
            warnings.warn(
                f"LRAN learned next to nothing in {self.n_iter_} steps: the relative error of its "
                f"forecasts is {history.reconstruction:.2f}, the mean state's is 1. Raise "
                "max_steps or lr, or n_latent.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def partial_fit(
        self, X: Any, y: Any = None, *, times: Any = None, max_steps: int | None = None
    ) -> "LRAN":
        """Go on training, at the constant rate `lr`, on these trajectories.

        Without an earlier `fit` the weights are fresh. Center and scale stay those of the first
        call; nothing is held out. After `load` the moments of Adam begin anew.

        Args:
            X: As for `fit`.
            y: Ignored.
            times: As for `fit`.
            max_steps: Batches; None: one pass over all windows.
        """
        self._check()
        begun = hasattr(self, "weights_")
        held = self._read(X, reset=not begun)
        elapsed = self._elapsed(held, times)
        self._check_windows(held)
        if begun:
            self._module_of_weights()
        else:
            self._start(held)
        if max_steps is None:
            max_steps = math.ceil(len(held.windows(self.horizon)) / self.batch_size)
        self._train(held, elapsed, max_steps, one_cycle=False)
        return self

    @property
    def module_(self) -> LRANModule:
        """The trained module; it sees states minus `mean_`, divided by `scale_`."""
        return self._module_of_weights()

    @property
    def koopman_matrix_(self) -> Any:
        """K, `(d, d)`, with z_{t+1} = z_t K in rows."""
        check_is_fitted(self)
        return self._give(self._matrix())

    @property
    def generator_(self) -> Any:
        """A, `(d, d)`, with K = exp(dt A).

        Raises:
            AttributeError: If the model is of discrete time.
        """
        if not self.continuous:
            raise AttributeError("generator_ needs LRAN(continuous=True).")
        check_is_fitted(self)
        return self._give(self.weights_["step"] / self.dt)

    # -- hooks of Dynamics ---------------------------------------------------------------------

    @override
    def _encode(self, x: Float[Tensor, "N n"]) -> Float[Tensor, "N d"]:
        net = self._module_of_weights()
        held = net.step
        x = x.to(held)
        return net.encoder((x - torch.as_tensor(self.mean_).to(held)) / self.scale_)

    @override
    def _decode(self, z: Float[Tensor, "N d"]) -> Float[Tensor, "N n"]:
        net = self._module_of_weights()
        held = net.step
        return net.decoder(z.to(held)) * self.scale_ + torch.as_tensor(self.mean_).to(held)

    @override
    def _matrix(self) -> Float[Tensor, "d d"]:
        return self._module_of_weights().matrix().detach()

    @override
    def _jacobian(self, z: Float[Tensor, " d"]) -> Float[Tensor, "d n"]:
        net = self._module_of_weights()

        def decoded(point: Tensor) -> Tensor:
            return net.decoder(point[None])[0]

        with torch.enable_grad():
            found = torch.autograd.functional.jacobian(decoded, z.detach())
        return found.detach().mT * self.scale_

    @override
    def _at_times(self, z: Float[Tensor, "m d"], times: Tensor) -> Float[Tensor, "m k d"]:
        if not self.continuous:
            return super()._at_times(z, times)
        return self._module_of_weights().flow(z, (times / self.dt).to(z))

    @override
    def _horizon(self) -> int:
        return self.horizon - 1

    # -- inside --------------------------------------------------------------------------------

    def _start(self, held: Trajectories) -> None:
        """Center, scale and fresh weights."""
        states, generator = held.states, make_generator(self.random_state)
        mean = states.mean(dim=0) if self.center else torch.zeros_like(states[0])
        size = float((states - mean).square().mean().sqrt())
        if not size > 1e-6 * float(states.abs().max()):
            raise ValueError(
                "all states are alike: there are no dynamics, and relative errors mean nothing."
            )
        self.mean_, self.scale_ = held.back(mean), size
        n = states.shape[1]
        if self.module is not None:
            net = copy.deepcopy(self.module)
        else:
            if self.n_latent > n:
                warnings.warn(
                    f"n_latent = {self.n_latent} exceeds the {n} state variables: the states are "
                    "lifted, which is legitimate but no reduction.",
                    UserWarning,
                    stacklevel=3,
                )
            net = make_module(
                n, self.n_latent, tuple(self.hidden), self.activation, self.continuous, generator
            )
        where = states.device if self.device is None else torch.device(self.device)
        self._net, self._optimizer, self._draws = net.to(where, states.dtype), None, generator
        self.loss_history_, self.n_iter_ = held.back(states.new_zeros(0)), 0

    def _train(
        self, held: Trajectories, elapsed: Tensor | None, steps: int, *, one_cycle: bool
    ) -> History:
        net = self._net
        where = net.step.device
        scaled = (held.states - torch.as_tensor(self.mean_).to(held.states)) / self.scale_
        share = self.validation_fraction if one_cycle else 0.0
        rows, judges = held.split(share, self.horizon)
        if not len(rows):
            rows, judges = held.split(0.0, self.horizon)
        windows = Windows(
            scaled.to(net.step), None if elapsed is None else elapsed.to(net.step),
            rows.to(where), judges.to(where),
        )  # fmt: skip
        plan = Plan(
            horizon=self.horizon, delta=self.delta, beta=self.beta, eps=self.eps, lr=self.lr,
            one_cycle=one_cycle, steps=steps, batch_size=self.batch_size,
            weight_decay=self.weight_decay, clip=self.clip, patience=self.patience,
        )  # fmt: skip
        if self._optimizer is None:
            self._optimizer = make_optimizer(net, plan)
        set_options(self._optimizer, plan)
        with ProgressLine(self.verbose, "LRAN step", steps) as line:
            try:
                history = train(
                    net, windows, plan, self._draws, self._optimizer,
                    watch=lambda done, loss: line(done, f"loss {loss:.4g}"),
                )  # fmt: skip
            except ConvergenceError:
                self._optimizer = None  # its moments are no numbers either
                raise
        self.weights_ = {name: weight.detach() for name, weight in net.state_dict().items()}
        earlier = torch.as_tensor(self.loss_history_).to(history.losses)
        losses = torch.cat([earlier, history.losses])
        self.loss_history_ = held.back(losses.to(held.states.dtype))
        self.n_iter_ += len(history.losses)
        self._settle()
        return history

    def _module_of_weights(self) -> LRANModule:
        """The module; after `load` it is made again from `weights_`."""
        check_is_fitted(self, "weights_")
        net = getattr(self, "_net", None)
        if net is None:
            if self.module is not None:
                net = copy.deepcopy(self.module)
            else:
                net = make_module(
                    self.n_features_in_, self.n_latent, tuple(self.hidden), self.activation,
                    self.continuous, torch.Generator(),
                )  # fmt: skip
            first = next(iter(self.weights_.values()))
            try:
                net.to(first.device, first.dtype).load_state_dict(self.weights_)
            except RuntimeError as error:
                raise ValueError(
                    "weights_ are those of another module: this model was trained with one of your "
                    "own, which no file holds. Give it again: LRAN.load(path, module=yours)."
                ) from error
            self._net, self._optimizer = net, None
            self._draws = make_generator(self.random_state)
        return net

    @override
    def __getstate__(self) -> Any:
        """Without what `weights_` gives back, and Adam's moments."""
        state = dict(super().__getstate__())
        for name in ("_net", "_optimizer", "_draws"):
            state.pop(name, None)
        return state

    def _elapsed(self, held: Trajectories, times: Any) -> Tensor | None:
        """Times in steps, or None where every state is a step after the last."""
        if times is None:
            return None
        if not self.continuous:
            raise ValueError("times need LRAN(continuous=True): a step of K has one length.")
        return (read_times(times, held) / self.dt).to(held.states)

    def _check_windows(self, held: Trajectories) -> None:
        if not len(held.windows(self.horizon)):
            raise ValueError(
                f"horizon = {self.horizon} needs a trajectory of as many states, n_samples = "
                f"{self.horizon}; the longest has n_samples = {max(held.lengths)}. Lower horizon."
            )

    def _check(self) -> None:
        check_common(self)
        check_loss_options(self.delta, self.beta)
        for name, least in (
            ("n_latent", 1), ("horizon", 2), ("max_steps", 1), ("batch_size", 1), ("patience", 1),
        ):  # fmt: skip
            check_count(name, getattr(self, name), least)
        if isinstance(self.hidden, (int, float)) or any(width < 1 for width in self.hidden):
            raise ValueError(
                f"hidden must be widths of at least 1, such as (64, 64), got {self.hidden}."
            )
        for name in ("eps", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {getattr(self, name)}.")
        if not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}. Infinite: no clipping.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}.")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction must be in [0, 1), got {self.validation_fraction}."
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}."
            )
        if self.module is not None and not isinstance(self.module, LRANModule):
            raise TypeError(
                f"module must be an LRANModule, got {type(self.module).__name__}. Wrap encoder and "
                "decoder: LRANModule(encoder, decoder, n_latent)."
            )
        if self.module is not None and self.module.continuous != self.continuous:
            raise ValueError(
                f"continuous = {self.continuous}, but the module's is {self.module.continuous}."
            )
