"""Where a vision encoder starts from: attention that already looks at neighbours, patches that know where they are.

Random attention mixes everything with everything, and learning to look nearby takes longer than the rest of seeing. The
queries' and keys' biases alone decide where a head looks when the rotary positions turn them: equal biases look at the patch
itself, and turning the key's by an offset moves the gaze there. So each head starts with a neighbour of its own.
"""

from __future__ import annotations

import math

import torch

from foveal.model.vision import Merger, VisionBlock, VisionModel

SHARPNESS = 12.0  # squared length of each turned pair: about 1 nat less per patch away from where a head looks
FAST = 3  # only the fastest frequencies can tell neighbours apart
WAVES = 4  # cosines an axis, beside its plain coordinate
BESIDE = ((0, 1), (0, -1), (1, 0), (-1, 0))
ACROSS = ((1, 1), (1, -1), (-1, 1), (-1, -1))


@torch.no_grad()
def look_nearby(vision: VisionModel, seed: int = 0) -> None:
    """Fill the blocks and mergers for training from scratch: heads look at neighbours, matrices keep their input's scale.

    Blocks look beside and across by turns, twice as far in the second half.
    """
    generator = torch.Generator().manual_seed(seed)
    config = vision.config
    width, heads, dim = config.hidden_size, config.num_heads, config.head_dim
    quarter = dim // 4
    frequency = 1.0 / config.rope_theta ** (torch.arange(0, dim // 2, 2) / (dim // 2))
    length = torch.zeros(quarter)
    length[:FAST] = math.sqrt(SHARPNESS)
    for i, block in enumerate(vision.blocks):
        assert isinstance(block, VisionBlock)
        attention, mlp = block.attn, block.mlp
        for weight in (attention.qkv.weight, attention.proj.weight, mlp.linear_fc1.weight, mlp.linear_fc2.weight):
            weight.normal_(0, 1 / math.sqrt(weight.shape[1]), generator=generator)
        attention.proj.weight.mul_(0.4)
        mlp.linear_fc2.weight.mul_(0.4)
        attention.qkv.weight[: 2 * width].mul_(0.25)  # at first content has little say in where a head looks
        bias = attention.qkv.bias.view(3, heads, dim).zero_()
        far = 1 + i // max(1, (config.depth + 1) // 2)
        for head in range(heads):
            offset = (BESIDE, ACROSS)[i % 2][head % 4]
            for axis in range(2):
                pair = torch.arange(quarter) + axis * quarter
                turn = frequency * offset[axis] * far
                bias[0, head, pair] = length
                bias[1, head, pair] = length * torch.cos(turn)
                bias[1, head, pair + dim // 2] = -length * torch.sin(turn)
    for merger in (vision.merger, *vision.deepstack_merger_list):
        assert isinstance(merger, Merger)
        for weight in (merger.linear_fc1.weight, merger.linear_fc2.weight):
            weight.normal_(0, 1 / math.sqrt(weight.shape[1]), generator=generator)


@torch.no_grad()
def know_places(vision: VisionModel, strength: float = 0.5, seed: int = 0) -> None:
    """Fill the position table with a smooth code of rows and columns, of `strength` a channel (root mean square).

    Rotary positions tell distances only; where a patch lies, for "left of" and boxes, comes from this table alone. Filled
    with small noise it was a seventieth of the patch embeddings after 5,000 steps (AdamW grows an entry by its learning rate
    at most), and a linear map found a patch's place in it to a fifth of the picture: a guess.
    """
    side, width = vision.config.position_side, vision.config.hidden_size
    place = torch.linspace(-1, 1, side)
    axis = torch.stack([place, *(torch.cos(math.pi * k * (place + 1) / 2) / k for k in range(1, WAVES + 1))], dim=1)
    rows = axis[:, None].expand(side, side, -1)
    code = torch.cat([rows, rows.transpose(0, 1)], dim=2).flatten(0, 1)
    spread = torch.empty(code.shape[1], width).normal_(generator=torch.Generator().manual_seed(seed))
    table = code @ spread
    vision.pos_embed.weight.copy_(table * (strength / table.pow(2).mean().sqrt()))
