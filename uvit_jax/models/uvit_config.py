"""Every number and every ablation of the paper's U-ViT as one frozen, checked dataclass."""

import dataclasses
import math
import numbers
from collections.abc import Sequence

from uvit_jax.errors import UserError, check_choice

# Dtypes of every network here; 8 bits are for the U-ViT alone.
DTYPES = ("float32", "bfloat16")
# The values of each ablation (arXiv:2209.12152, section 3.1), the paper's choice first.
CHOICES = {
    "skip": ("concat", "add_then_linear", "linear_then_add", "add", "none"),
    "time": ("token", "adaln"),
    "conv": ("after", "before", "none"),
    "patch_embed": ("linear", "conv_stack"),
    "pos_embed": ("learned", "sincos_2d"),
    "dtype": (*DTYPES, "fp8"),
    "remat": ("none", "matmuls", "full"),
    "attention": ("auto", "xla", "cudnn", "triton", "hopper", "mosaic"),
    "kernels": ("auto", "xla", "triton"),
}
# Fields that are 0 where a model has no such thing.
_OPTIONAL = ("num_classes", "context_dim", "context_length")


@dataclasses.dataclass(frozen=True)
class UViTConfig:
    """The architecture of a U-ViT and how it is computed.

    Attributes:
      image_size: height and width of the input in pixels (or latent pixels); one number for a
        square, or (h, w).
      patch_size: side of a patch.
      in_channels: channels of the input and of the prediction.
      embed_dim: width D of every token.
      depth: number of ALL blocks, odd: (depth-1)/2 in, one in the middle, (depth-1)/2 out.
      num_heads: attention heads; head_dim = embed_dim / num_heads.
      mlp_ratio: hidden width of the MLP over embed_dim.
      qkv_bias: whether the query, key and value projections have a bias.
      time_mlp: pass the sinusoidal time embedding through Linear, SiLU, Linear.
      num_classes: rows of the label table, an empty label included; 0 for a model without labels.
      context_dim: width of the text states; 0 for a model without text.
      context_length: number of text states.
      skip: how a long skip h_s joins the stream h_m: "concat" Linear(Concat(h_m, h_s)),
        "add_then_linear" Linear(h_m + h_s), "linear_then_add" h_m + Linear(h_s), "add" h_m + h_s,
        or "none".
      time: "token", the time is one more token; "adaln", it scales and shifts every LayerNorm.
      conv: where a 3x3 convolution is: "after" the linear head on the image, "before" it on the
        token map, "none".
      patch_embed: "linear", or "conv_stack", 3x3 convolutions and a 1x1 one.
      pos_embed: "learned" for all tokens, or "sincos_2d", fixed, for the patches (zero for the
        other tokens).
      dtype: what matrix products and the residual stream are computed in; parameters are float32
        either way. "fp8" is "bfloat16" with the forward products of the blocks in float8_e4m3fn.
      remat: what the backward pass recomputes: "none"; "matmuls", all but matrix products and
        attention; "full", whole blocks.
      scan_blocks: run the blocks under `lax.scan`: compiles once for all of them. The parameters
        and the numbers are those of the unrolled model.
      attention: kernel: "auto" (by hardware, dtype and shape), "xla", "cudnn", "triton" or
        "hopper" (GPUs), "mosaic" (TPUs).
      kernels: of norms, residual sums and GELU: "auto" (by hardware and dtype), "xla" or "triton".
        Forward-mode derivatives (`jax.jvp`, also of a gradient) exist where both attention and
        kernels are "xla".
    """

    image_size: int | tuple[int, int] = 32
    patch_size: int = 2
    in_channels: int = 3
    embed_dim: int = 512
    depth: int = 13
    num_heads: int = 8
    mlp_ratio: int | float = 4.0
    qkv_bias: bool = False
    time_mlp: bool = False
    num_classes: int = 0
    context_dim: int = 0
    context_length: int = 0
    skip: str = "concat"
    time: str = "token"
    conv: str = "after"
    patch_embed: str = "linear"
    pos_embed: str = "learned"
    dtype: str = "float32"
    remat: str = "none"
    scan_blocks: bool = False
    attention: str = "auto"
    kernels: str = "auto"

    def __post_init__(self):
        for field, choices in CHOICES.items():
            check_choice(field, getattr(self, field), choices)
        for field in ("patch_size", "in_channels", "embed_dim", "depth", "num_heads", *_OPTIONAL):
            if not isinstance(getattr(self, field), numbers.Integral):
                raise UserError(f"{field} is {getattr(self, field)!r}, expected a whole number")
        sides = (
            self.image_size
            if isinstance(self.image_size, Sequence)
            else (self.image_size, self.image_size)
        )
        if len(sides) != 2 or not all(isinstance(side, numbers.Integral) for side in sides):
            raise UserError(
                f"image_size is {self.image_size!r}, expected a whole number, or two: height "
                "and width"
            )
        for field in ("patch_size", "in_channels", "embed_dim", "depth", "num_heads"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} is {getattr(self, field)}, expected at least 1")
        for field in _OPTIONAL:
            if getattr(self, field) < 0:
                raise UserError(f"{field} is {getattr(self, field)}, expected 0 (none) or more")
        height, width = self.input_size
        if height < 1 or width < 1 or height % self.patch_size or width % self.patch_size:
            raise UserError(
                f"image_size is {height}x{width}, expected positive multiples of patch_size = "
                f"{self.patch_size}"
            )
        if self.depth % 2 == 0:
            raise UserError(
                f"depth is {self.depth}, expected an odd number: it counts all blocks, half in, "
                f"one middle, half out"
            )
        if self.embed_dim % self.num_heads:
            raise UserError(
                f"embed_dim is {self.embed_dim}, expected a multiple of num_heads = "
                f"{self.num_heads}"
            )
        if not 1 <= self.embed_dim * self.mlp_ratio < math.inf:
            raise UserError(f"mlp_ratio is {self.mlp_ratio}, expected a positive number")
        if self.num_classes and self.context_dim:
            raise UserError(
                "num_classes and context_dim are both set, expected a model of labels or of text, "
                "not both"
            )
        if bool(self.context_dim) != bool(self.context_length):
            raise UserError(
                f"context_dim is {self.context_dim} and context_length {self.context_length}, "
                f"expected both or neither"
            )
        if self.patch_embed == "conv_stack" and self.patch_size & (self.patch_size - 1):
            raise UserError(
                f"patch_size is {self.patch_size}, expected a power of two for patch_embed = "
                f"'conv_stack'"
            )
        if self.pos_embed == "sincos_2d" and self.embed_dim % 4:
            raise UserError(
                f"embed_dim is {self.embed_dim}, expected a multiple of 4 for pos_embed = "
                f"'sincos_2d'"
            )

    @property
    def compute_dtype(self) -> str:
        """Dtype of activations, and of all products that are not in 8 bits."""
        return "bfloat16" if self.fp8 else self.dtype

    @property
    def fp8(self) -> bool:
        """True if the blocks' forward products are in 8 bits."""
        return self.dtype == "fp8"

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input."""
        if isinstance(self.image_size, Sequence):
            height, width = self.image_size
            return height, width
        return self.image_size, self.image_size

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of one input, (h, w, c)."""
        return (*self.input_size, self.in_channels)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        height, width = self.input_size
        return height // self.patch_size, width // self.patch_size

    @property
    def num_extra_tokens(self) -> int:
        """Tokens in front of the patches: label, time and text, whichever there are."""
        return int(self.num_classes > 0) + int(self.time == "token") + self.context_length

    @property
    def num_tokens(self) -> int:
        """Length of the sequence the blocks see."""
        return self.num_extra_tokens + self.grid[0] * self.grid[1]
