"""A policy on disk: `policy.json` says what it is, `policy.safetensors` holds its tensors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from peira.policies.actor_critic import CategoricalActorCritic, GaussianActorCritic
from peira.policies.continuous import DeterministicActor, GaussianActor, TanhGaussianActor, UniformActor
from peira.policies.stacked import StackedCategoricalPolicy, StackedGaussianPolicy


@runtime_checkable
class SavesItself(Protocol):
    """A policy with a format of its own, and a hash of what decides."""

    def save(self, folder: Path) -> None: ...

    def content_hash(self) -> str: ...


CLASSES = {
    kind.__name__: kind
    for kind in (
        GaussianActorCritic,
        CategoricalActorCritic,
        DeterministicActor,
        GaussianActor,
        TanhGaussianActor,
        UniformActor,
        StackedGaussianPolicy,
        StackedCategoricalPolicy,
    )
}


def tensors_of(policy: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and normaliser statistics by name, each in memory of its own."""
    return {
        name: value.detach().clone().contiguous()
        for name, value in policy.state_dict().items()
        if isinstance(value, torch.Tensor)
    }


def save_policy(policy: nn.Module | SavesItself, folder: Path) -> None:
    """Write the policy to `folder`, which is made if need be; one that is none of `CLASSES` in a format of its own."""
    if type(policy).__name__ not in CLASSES:
        policy.save(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors_of(policy), folder / "policy.safetensors")
    about = {**policy.description(), "id": policy.id, "version": policy.version}
    (folder / "policy.json").write_text(json.dumps(about, indent=2) + "\n")


def load_policy(folder: str | Path) -> nn.Module:
    """The policy that `save_policy` wrote.

    Raises ValueError when the folder holds no policy, or one of a class that this version does not know.
    """
    folder = Path(folder)
    description = folder / "policy.json"
    if not description.exists():
        raise ValueError(
            f"policy: {folder} holds no policy.json; name a folder that a run wrote, such as RUN/policy"
        )
    about = json.loads(description.read_text())
    identity, version, kind = about.pop("id"), about.pop("version"), about.pop("class")
    if kind not in CLASSES:
        raise ValueError(f"policy: {description} is of class {kind!r}; known are {', '.join(CLASSES)}")
    policy = CLASSES[kind](**about)
    extra = {"_extra_state": {"id": identity, "version": version}}
    policy.load_state_dict({**load_file(folder / "policy.safetensors"), **extra})
    return policy


def policy_hash(policy: nn.Module | SavesItself) -> str:
    """SHA-256 over names and bytes of all tensors: equal exactly when two policies are equal bit for bit.

    A policy that is no module has a `content_hash` of its own.
    """
    if not isinstance(policy, nn.Module):
        return policy.content_hash()
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors_of(policy).items()):
        digest.update(name.encode())
        digest.update(
            tensor.cpu().view(torch.uint8).numpy().tobytes()
            if tensor.dim()
            else tensor.cpu().numpy().tobytes()
        )
    return digest.hexdigest()
