"""Sampling error: how far a set of actions is from what its policy would show in infinitely many.

SE(D, θ) = D_KL(π_D ‖ π_θ) ≈ mean over D of log π_MLE(a|s) − log π_θ(a|s), where π_MLE maximises the
likelihood of D over the last layer of π_θ (and a Gaussian's standard deviations), its hidden layers frozen.
For actions drawn from π_θ itself the expectation is p/(2N) (Wilks; p fitted parameters, N rows), so two
values compare only at equal N and equal class.

Source: Corrado & Hanna, arXiv 2311.08290. The released code also weights each row by |advantage|; the defined
quantity, here, does not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

RIDGE = 1e-8  # on the sum over rows: it only decides where the data do not
ADAM_STEPS, ADAM_LEARNING_RATE = 2000, 1e-3
NEWTON_STEPS, NEWTON_TOLERANCE = 100, 3e-7


@dataclass(frozen=True)
class SamplingError:
    """A measured sampling error and what to read it against."""

    value: float  # nats a row
    reference_level: float  # p / (2N): its expectation for on-policy data
    parameters: int  # p, the free parameters fitted
    rows: int  # N

    @property
    def ratio(self) -> float:
        """Value over reference level: 1 for on-policy data, below 1 for corrected data."""
        return self.value / self.reference_level


def fitted_parameters(policy: nn.Module) -> int:
    """p: entries of the last layer, less those that a softmax ignores, and a Gaussian's standard deviations."""
    outputs, features = policy.actor_head.weight.shape
    biased = policy.actor_head.bias is not None
    return (
        (features + biased + 1) * outputs
        if hasattr(policy, "log_std")
        else (features + biased) * (outputs - 1)
    )


def sampling_error(
    policy: nn.Module,
    observation: Float[Tensor, "rows ..."],
    action: Float[Tensor, "rows actions"] | Int[Tensor, " rows"],
    kind: str = "exact",
) -> SamplingError:
    """The sampling error of these rows with respect to an actor-critic policy.

    `kind="exact"` solves for the maximum-likelihood last layer (`gaussian_sampling_error`,
    `categorical_sampling_error`). `kind="adam"` climbs towards it as the authors' later code does: full-batch
    Adam from θ, step size 1e-3 falling linearly to 0 over 2000 steps; it is for comparing with their figures.

    Raises ValueError when there are fewer rows than fitted parameters, when a policy output or action is not
    finite, or when a discrete action is out of range.
    """
    if kind not in ("exact", "adam"):
        raise ValueError(f"kind: expected 'exact' or 'adam', got {kind!r}")
    action = action.detach()
    with torch.no_grad():
        hidden = policy.features(observation)
        output = policy.actor_head(hidden).double()
    rows, width = hidden.shape
    biased = policy.actor_head.bias is not None
    features = torch.ones(rows, width + biased, dtype=torch.float64, device=hidden.device)
    features[:, :width] = hidden
    parameters = fitted_parameters(policy)
    if hasattr(policy, "log_std"):
        fit = gaussian_sampling_error if kind == "exact" else _adam_gaussian
        arguments = (features, output, policy.log_std.detach().double(), action.double())
    else:
        if len(action) and not 0 <= action.min() <= action.max() < output.shape[1]:
            raise ValueError(
                f"action: expected 0 to {output.shape[1] - 1}, got {int(action.min())} to {int(action.max())}"
            )
        fit = categorical_sampling_error if kind == "exact" else _adam_categorical
        arguments = (features, output, action)
    if rows < parameters:
        raise ValueError(
            f"sampling error: {rows} rows cannot tell {parameters} fitted parameters apart; "
            f"give at least {parameters} rows or use a policy with a smaller last layer"
        )
    for name, tensor in (("policy output", output), ("action", action)):
        if not torch.isfinite(tensor).all():
            raise ValueError(f"sampling error: the {name} is not finite in every row")
    value = fit(*arguments)
    return SamplingError(value, parameters / (2 * rows), parameters, rows)


def gaussian_sampling_error(
    features: Float[Tensor, "rows features"],
    mean: Float[Tensor, "rows actions"],
    log_std: Float[Tensor, " actions"],
    action: Float[Tensor, "rows actions"],
) -> float:
    """Sampling error in nats a row of N(mean, exp 2 log_std), the mean linear in `features`, in closed form.

    The likeliest mean is ordinary least squares on the features, the likeliest variance S_d the mean squared
    residual, so that  SE = Σ_d [ log σ_d − ½ log S_d − ½ + mean (a_d − μ_d)² / (2σ_d²) ].

    All float64, for features are often nearly collinear; ridge 1e-8. The residual deviation is not let below
    a millionth of σ, since data without any spread would have infinite likelihood.
    """
    deviation = (action - mean) / log_std.exp()
    gram = features.T @ features
    # The second term keeps rounding from making the matrix indefinite when features are large.
    gram.diagonal().add_(RIDGE + 1e-14 * gram.trace())
    slope = torch.cholesky_solve(features.T @ deviation, torch.linalg.cholesky_ex(gram).L)
    residual = (deviation - features @ slope).square().mean(dim=0).clamp_min(1e-12)
    return float(((deviation.square().mean(dim=0) - residual.log() - 1) / 2).sum())


def categorical_sampling_error(
    features: Float[Tensor, "rows features"],
    logits: Float[Tensor, "rows actions"],
    action: Int[Tensor, " rows"],
) -> float:
    """Sampling error in nats a row of softmax(logits), logits linear in `features`, by maximum likelihood.

    SE = max over Δ of  mean log softmax(logits + features Δ)_a − mean log softmax(logits)_a.

    The problem is concave. Newton's method starts at Δ = 0, which is within O(p/N) of the top when the data
    are nearly on-policy, keeps its factored Hessian for as long as that converges fast, halves a step that
    would not climb, and ends when the gain still predicted is below 3e-7 nats. Where the features separate an
    action from the others (one that never occurs, say) Δ runs to infinity, but the likelihood has a finite
    supremum: the same rule ends the run close to it, and a ridge of 1e-8 keeps the Hessian (only) invertible.
    So no logit has to be clamped, as the authors' code does, and the value is that of the defined quantity.
    """
    x = features.detach().cpu().numpy()
    rows, actions = logits.shape
    others = actions - 1  # the last action is the reference: adding the same to all logits changes nothing
    chosen = (action.cpu().numpy(), np.arange(rows))

    # Action-major: sums over a short last axis are slow.
    start = np.ascontiguousarray(logits.detach().cpu().numpy().T)
    indicator = np.zeros((actions, rows))
    indicator[chosen] = 1.0

    def loss(delta: np.ndarray) -> tuple[float, np.ndarray]:
        score = start.copy()
        score[:others] += _product(delta, x.T)
        score -= score.max(axis=0)
        probability = np.exp(score).clip(1e-300)
        normaliser = probability.sum(axis=0)
        probability /= normaliser
        return float((np.log(normaliser) - score[chosen]).mean()), probability

    def newton_step(gradient: np.ndarray) -> tuple[np.ndarray, float]:
        right = torch.from_numpy(gradient).view(-1, 1)
        step = torch.cholesky_solve(right, factor).numpy().reshape(gradient.shape)
        return step, float((gradient * step).sum()) / 2

    delta = np.zeros((others, x.shape[1]))
    initial, probability = loss(delta)
    current, previous_gain = initial, 0.0
    factor, factored_at = None, probability
    for _ in range(NEWTON_STEPS):
        gradient = _product((probability - indicator)[:others], x) / rows
        if factor is not None:
            step, gain = newton_step(gradient)
            # Today's Hessian is at least min(p / p_then) times the old one, so its gain is bounded too.
            if gain < NEWTON_TOLERANCE * (probability / factored_at).min():
                break
            if gain < NEWTON_TOLERANCE or gain > previous_gain / 4:
                factor = None
        if factor is None:
            factor, factored_at = _factored_hessian(x, probability), probability
            step, gain = newton_step(gradient)
            if gain < NEWTON_TOLERANCE:
                break
        size = 1.0
        candidate, probability = loss(delta - step)
        while candidate > current - 1e-4 * size * gain:
            size /= 2
            candidate, probability = loss(delta - size * step)
        delta, current, previous_gain = delta - size * step, candidate, gain
    return initial - current


def _factored_hessian(
    x: Float[np.ndarray, "rows features"], probability: Float[np.ndarray, "actions rows"]
) -> Float[Tensor, "parameters parameters"]:
    """Cholesky factor of the Hessian of the mean negative log-likelihood, last action as reference."""
    rows, width = x.shape
    others = len(probability) - 1
    hessian = np.zeros((others, width, others, width))
    weighted = np.empty_like(x)
    for i in range(others):
        for j in range(i + 1):
            weight = probability[i] * (1 - probability[i] if i == j else probability[j])
            np.multiply(x, np.sqrt(weight / rows)[:, None], out=weighted)
            block = _product(weighted.T, weighted)
            hessian[i, :, j] = hessian[j, :, i] = block if i == j else -block
    hessian = hessian.reshape(others * width, others * width)
    # For the directions that the data leave open, and against rounding; it changes the path, not the goal.
    hessian[np.diag_indices_from(hessian)] += RIDGE / rows + 1e-13 * hessian.trace()
    return torch.linalg.cholesky(torch.from_numpy(hessian))


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left @ right on torch's threads; NumPy's own stall each other when the machine is busy."""
    return (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()


def _adam_gaussian(
    features: Float[Tensor, "rows features"],
    mean: Float[Tensor, "rows actions"],
    log_std: Float[Tensor, " actions"],
    action: Float[Tensor, "rows actions"],
) -> float:
    slope = torch.zeros(features.shape[1], mean.shape[1], dtype=mean.dtype, device=mean.device)
    log_std = log_std.clone()

    def loss() -> Tensor:
        deviation = (action - mean - features @ slope) / log_std.exp()
        return (deviation.square().mean(dim=0) / 2 + log_std).sum()

    return _adam_gain(loss, [slope, log_std])


def _adam_categorical(
    features: Float[Tensor, "rows features"],
    logits: Float[Tensor, "rows actions"],
    action: Int[Tensor, " rows"],
) -> float:
    slope = torch.zeros(features.shape[1], logits.shape[1], dtype=logits.dtype, device=logits.device)
    return _adam_gain(lambda: nn.functional.cross_entropy(logits + features @ slope, action), [slope])


def _adam_gain(loss: Callable[[], Tensor], parameters: list[Tensor]) -> float:
    """How far Adam lowers the loss."""
    with torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(parameters, lr=ADAM_LEARNING_RATE)
        initial = loss().item()
        for step in range(ADAM_STEPS):
            optimizer.param_groups[0]["lr"] = ADAM_LEARNING_RATE * (1 - step / ADAM_STEPS)
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    return initial - loss().item()
