"""Muon for the matrices of the blocks, Adam for the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) orthogonalises the momentum of
each matrix. torch's own version works in bfloat16, and took 28 seconds a step for the target's 32 matrices
on two cores without bf16 units (torch 2.13.0); this one keeps the gradient's dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic's coefficients, from the post


def orthogonalise(gradient: Tensor, steps: int = 5) -> Tensor:
    """A matrix with gradient's singular vectors and singular values near 1."""
    a, b, c = NEWTON_SCHULZ
    tall = gradient.shape[0] > gradient.shape[1]
    x: Tensor = gradient.T if tall else gradient
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class MuonWithAdam:
    """Muon and Adam behind one optimiser's interface. `rate` in step() scales the peak learning rates of both.

    blocks: a string that the names of the blocks' parameters contain. transposed: whether matrices are (inputs,
    outputs), as in GPT-2, and not (outputs, inputs)."""

    def __init__(
        self,
        model: nn.Module,
        muon_rate: float = 0.02,
        adam_rate: float = 3e-3,
        momentum: float = 0.95,
        blocks: str = ".h.",
        transposed: bool = True,
    ) -> None:
        self.muon_rate, self.adam_rate, self.momentum = muon_rate, adam_rate, momentum
        self.transposed = transposed
        self.matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and blocks in name]
        chosen = {id(p) for p in self.matrices}
        self.velocity = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.Adam([p for p in model.parameters() if id(p) not in chosen], adam_rate, (0.9, 0.95))

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Apply the gradients, and clear them."""
        for parameter, velocity in zip(self.matrices, self.velocity, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            velocity.lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp(velocity, self.momentum))
            rows, columns = update.shape
            scale = max(1.0, columns / rows if self.transposed else rows / columns) ** 0.5
            parameter.add_(update, alpha=-self.muon_rate * rate * scale)
            parameter.grad = None
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * rate
        self.adam.step()
        self.adam.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The state that load_state_dict() takes to continue from here."""
        return {"velocity": self.velocity, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state that state_dict() gave."""
        for velocity, saved in zip(self.velocity, state["velocity"], strict=True):
            velocity.copy_(saved)
        self.adam.load_state_dict(state["adam"])
