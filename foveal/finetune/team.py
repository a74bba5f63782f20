"""Several processes that run one step together: weights in shards (FSDP2), products divided (tensor parallelism).

Both are torch's own and put on from outside. Every process reads all samples in the same order, so each knows the whole step
without asking: which batches are its own, what their losses are divided by, and whether another sees a picture where it does
not. A step is the same whatever the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from foveal.errors import ConfigError
from foveal.finetune.lora import LoraLinear
from foveal.model import Qwen3VL

# What is divided by rows (outputs) and what by columns (inputs), so that a pair needs one sum. All else is whole everywhere.
COLUMNWISE = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "mlp.linear_fc1")
ROWWISE = ("o_proj", "down_proj", "mlp.linear_fc2")
HEADWISE = ("q_norm", "k_norm")


class Turn(NamedTuple):
    """What a process does while all run one forward pass: the batch it takes, whether that counts, and all that are taken."""

    batch: int
    counts: bool
    all: range


class Team:
    """The processes of a run, `data` times `tensor` of them; without a mesh there is this one alone.

    Those along `data` take different batches and hold shards of all weights; those along `tensor` share every product.
    """

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        self.mesh = mesh
        self.data, self.tensor = (1, 1) if mesh is None else (mesh["data"].size(), mesh["tensor"].size())
        self.index = 0 if mesh is None else mesh["data"].get_local_rank()
        self.leads = mesh is None or dist.get_rank() == 0

    @classmethod
    def join(cls, device: str, tensor: int) -> Team:
        """Meet the others that torchrun has started, if it has. Raise ConfigError if they cannot be divided so."""
        world = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
        if world % tensor:
            raise ConfigError(
                f"tensor_parallel is {tensor}, but the processes are {world}, no multiple of it; start more, as in "
                f"torchrun --nproc-per-node {tensor} -m foveal train run.toml"
            )
        if world == 1:
            return cls()
        kind = torch.device(device).type
        if not dist.is_initialized():
            dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        if kind == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        return cls(init_device_mesh(kind, (world // tensor, tensor), mesh_dim_names=("data", "tensor")))

    def leave(self) -> None:
        """Part from the others."""
        if self.mesh is not None:
            dist.destroy_process_group()

    def divide(self, model: Qwen3VL, objective: nn.Module) -> None:
        """Divide a model among the processes. objective: the module around it whose forward pass is a whole one.

        Decoder layers are gathered one at a time; what every batch may or may not need (the encoder) or needs at both ends
        (embeddings, head) is gathered with the objective, once a batch.
        """
        if self.mesh is None:
            return
        learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if self.tensor > 1:
            _check_heads(model, self.tensor)
            parallelize_module(model, self.mesh["tensor"], _plan(model))
            for parameter in model.parameters():
                if not isinstance(parameter, DTensor):
                    parameter.data = parameter.data.to(self.mesh.device_type)
            model.language_model.reset_tables()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in learns)  # divided weights are new ones
        if self.data > 1:
            for layer in model.language_model.layers:
                fully_shard(layer, mesh=self.mesh["data"])
            _check_types(model)
            fully_shard(objective, mesh=self.mesh["data"])

    def rest(self, objective: nn.Module) -> None:
        """Let go of the weights that a forward pass without a backward one has left gathered: a step will change them."""
        if isinstance(objective, FSDPModule):
            objective.reshard()

    def turns(self, count: int) -> Iterator[Turn]:
        """Divide `count` batches into turns, and yield what this process does in each.

        All take equally many, since they gather weights together: who has none left takes the last one again, for nothing.
        """
        for first in range(0, count, self.data):
            turn, mine = range(first, min(first + self.data, count)), first + self.index
            yield Turn(min(mine, turn[-1]), mine in turn, turn)

    def sum(self, values: Tensor) -> Tensor:
        """Add up what the processes along `data` hold, on the CPU; those along `tensor` hold the same."""
        if self.mesh is not None:
            values = values.to(self.mesh.device_type)
            dist.all_reduce(values, group=self.mesh["data"].get_group())
        return values.cpu()

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is up in any process."""
        if self.mesh is None:
            return flag
        held = torch.tensor(int(flag), device=self.mesh.device_type)
        dist.all_reduce(held, op=dist.ReduceOp.MAX)
        return bool(held.item())

    def wait(self) -> None:
        """Wait for the others."""
        if self.mesh is not None:
            dist.barrier()


def whole(value: Tensor) -> Tensor:
    """Gather a divided tensor; all processes take part. Any other is returned as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def layout(value: Tensor) -> Any:
    """Return what tensors of one foreach call must share: the mesh they are divided on, None for plain ones."""
    return value.device_mesh if isinstance(value, DTensor) else None


def _plan(model: Qwen3VL) -> dict[str, ParallelStyle]:
    """Say how each module is divided: by columns what splits heads or the MLP's width, by rows what joins them again."""
    plan: dict[str, ParallelStyle] = {}
    for name, module in model.named_modules():
        adapted = isinstance(module, LoraLinear)
        if adapted or isinstance(module, nn.Linear):
            base = f"{name}.base_layer" if adapted else name
            if name.endswith(COLUMNWISE):
                plan[base] = ColwiseParallel()
                if adapted:
                    plan[f"{name}.lora_B"] = ColwiseParallel()
            elif name.endswith(ROWWISE):
                plan[base] = RowwiseParallel()
                if adapted:
                    plan[f"{name}.lora_A"] = RowwiseParallel()
            elif name == "lm_head":
                plan[base] = ColwiseParallel(output_layouts=Replicate())
        elif name.endswith(HEADWISE):
            plan[name] = SequenceParallel(sequence_dim=1, use_local_output=True)
    return plan


def _check_heads(model: Qwen3VL, tensor: int) -> None:
    heads = model.config.text.num_key_value_heads
    if heads % tensor:
        raise ConfigError(
            f"tensor_parallel is {tensor}, but the decoder has {heads} key and value heads; take a divisor of {heads}"
        )


def _check_types(model: Qwen3VL) -> None:
    inner = {id(parameter) for parameter in model.language_model.layers.parameters()}
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad and id(p) not in inner}
    if len(dtypes) > 1:
        raise ConfigError(
            "adapters and whole parts learn outside of the decoder's layers, in different types, which several processes "
            'cannot gather together; set dtype = "float32", or let one of vision and merger be 0'
        )
