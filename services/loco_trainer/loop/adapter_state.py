"""The trained parameters and AdamW's moments, each in one flat float32 buffer.

The model's adapter parameters and their gradients are views into the buffers, so a step of the
optimizer, the norm of the gradient and clearing it are a few kernels instead of hundreds. AdamW works
element by element, so the result is the same. Loshchilov and Hutter 2019, "Decoupled Weight Decay
Regularization".
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from loco.contracts.specs import TrainSpec

_MOMENTS = "optimizer.safetensors"
_STATE = "trainer_state.json"


class AdapterState:
    """The adapter of a model under training."""

    def __init__(self, model: Any, spec: TrainSpec) -> None:
        """Moves the model's trainable parameters, as float32, into one buffer.

        Adapters in bfloat16 would lose every update below 0.2 % of a weight.
        """
        self.model = model
        trainable = [p for p in model.parameters() if p.requires_grad]
        size = sum(p.numel() for p in trainable)
        device = trainable[0].device
        self.parameters = torch.nn.Parameter(torch.empty(size, device=device))
        self.gradient = torch.zeros(size, device=device)
        self.parameters.grad = self.gradient
        start = 0
        for parameter in trainable:
            part = slice(start, start + parameter.numel())
            start = part.stop
            home = self.parameters.data[part].view_as(parameter)
            home.copy_(parameter.data)
            parameter.data = home
            parameter.grad = self.gradient[part].view_as(parameter)
        self._largest_norm = spec.max_grad_norm
        on_gpu = device.type == "cuda"
        self._optimizer = torch.optim.AdamW(
            [self.parameters],
            lr=spec.learning_rate,
            weight_decay=spec.weight_decay,
            fused=on_gpu,
        )
        # made now: a step must not be able to run out of memory half way
        self._set_moments(0, torch.zeros_like(self.gradient), torch.zeros_like(self.gradient))
        #: Keeps float16 gradients from vanishing; with any other type it does nothing.
        self.scaler = torch.amp.GradScaler(device.type, enabled=False)

    def guard_float16(self) -> None:
        """Scales the loss, for a forward pass in float16."""
        self.scaler = torch.amp.GradScaler(self.parameters.device.type)

    def step(self, learning_rate: float) -> torch.Tensor:
        """Clips the gradient, updates the parameters and clears the gradient.

        Returns:
            The gradient's norm before clipping, a tensor on the device: reading it waits.
        """
        self.scaler.unscale_(self._optimizer)
        norm = self.gradient.norm()
        self.gradient *= (self._largest_norm / (norm + 1e-6)).clamp(max=1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self.scaler.step(self._optimizer)
        self.scaler.update()
        self.gradient.zero_()
        return norm

    def forget_moments(self) -> None:
        """Has the optimizer begin anew."""
        for moment in self._optimizer.state[self.parameters].values():
            moment.zero_()

    def copied(self) -> torch.Tensor:
        """The adapter's parameters as they are now, flat float32, in RAM."""
        return self.parameters.data.to("cpu", copy=True)

    def put(self, parameters: torch.Tensor) -> None:
        """Gives the parameters the values of a flat tensor; the moments stay."""
        self.parameters.data.copy_(parameters)

    def take_over(self, other: "AdapterState") -> None:
        """Goes on from where the same adapter stands on another copy of the base."""
        self.parameters.data.copy_(other.parameters.data)
        moments = other._optimizer.state[other.parameters]
        self._set_moments(int(moments["step"]), moments["exp_avg"], moments["exp_avg_sq"])
        self.scaler = other.scaler

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Writes all a later process needs to go on.

        Args:
            folder: is made.
            state: the loop's own, plain JSON, with `global_step`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        moments = self._optimizer.state[self.parameters]
        tensors = {name: moments[name] for name in ("exp_avg", "exp_avg_sq")}
        tensors["cpu_rng"] = torch.get_rng_state()
        if self.parameters.is_cuda:
            tensors["cuda_rng"] = torch.cuda.get_rng_state()
        save_file(tensors, folder / _MOMENTS)
        own = {"loss_scale": self.scaler.state_dict(), "optimizer_step": int(moments["step"])}
        (folder / _STATE).write_text(json.dumps(state | own) + "\n")

    def load(self, folder: Path) -> dict[str, Any]:
        """Goes back to what `save` wrote; returns the loop's state."""
        set_peft_model_state_dict(self.model, load_file(folder / "adapter_model.safetensors"))
        tensors = load_file(folder / _MOMENTS)
        state: dict[str, Any] = json.loads((folder / _STATE).read_text())
        device = self.parameters.device
        self._set_moments(
            state["optimizer_step"],
            tensors["exp_avg"].to(device),
            tensors["exp_avg_sq"].to(device),
        )
        torch.set_rng_state(tensors["cpu_rng"])
        if self.parameters.is_cuda and "cuda_rng" in tensors:
            torch.cuda.set_rng_state(tensors["cuda_rng"])
        if state["loss_scale"]:
            self.scaler.load_state_dict(state["loss_scale"])
        return state

    def _set_moments(self, step: int, first: torch.Tensor, second: torch.Tensor) -> None:
        self._optimizer.state[self.parameters] = {
            # torch's fused AdamW keeps it on the GPU
            "step": torch.tensor(float(step), device=self.parameters.device),
            "exp_avg": first,
            "exp_avg_sq": second,
        }
