"""The frozen LLM as the model sees it: prefix vectors in, the hidden state of the last position out."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simv0.llm.cuda_graphs import captured
from simv0.llm.fast import FastStack, Kept
from simv0.runtime.digests import files_digest
from simv0.runtime.distributed import shard_blocks
from simv0.runtime.threads import over_batch

ROWS = 32
"""Prefixes that one thread takes through the stack by itself."""
PAYS = 3e8
"""Operations of one layer on so many prefixes from which that beats one thread: d = 256 and wider. The calls of a
smaller layer take as long as its products, and only one thread at a time can make them."""


class FrozenLLM(nn.Module):
    """A frozen LLM without token embedding and without LM head; always in eval mode.

    Attributes:
        d: width of the input vectors.
        hidden_size: width of the hidden state (differs from `d` in a few families, such as OPT-350m).
        embed_rms: RMS of the LLM's own token embeddings, as they would stand in `inputs_embeds`.
        bos: embedding of the token that the LLM's texts begin with; None where it has none.
        path: `fast` or `reference`.
        compiled_for: (batch, tokens) that `compile.compile_llm` compiled the blocks for.
        sharded: whether the weights are split over several processes.
        captured: (batch, tokens, with gradients) -> the stack as CUDA graphs.
        identity: `llm_name`, `llm_revision` (None for a folder), `llm_tensors` (`digests.tensors_digest`).
        files: the files that the weights came from.
    """

    def __init__(
        self,
        stack: nn.Module,
        *,
        d: int,
        hidden_size: int,
        embed_rms: float,
        identity: dict[str, str | None],
        bos: Float[Tensor, " d"] | None = None,
        files: tuple[Path, ...] = (),
    ) -> None:
        super().__init__()
        self.stack = stack.requires_grad_(False)
        self.path = "fast" if isinstance(stack, FastStack) else "reference"
        self.compiled_for: tuple[int, int] | None = None
        self.sharded = False
        self.captured: dict[tuple[int, int, bool], Callable[[Tensor], Tensor]] = {}
        self.d, self.hidden_size, self.embed_rms, self.bos = d, hidden_size, embed_rms, bos
        self.identity, self.files = identity, files
        weights = sum(weight.numel() for weight in stack.parameters() if weight.ndim > 1)
        depth = max((len(layers) for layers in stack.modules() if isinstance(layers, nn.ModuleList)), default=1)
        self._layer_weights = weights / depth
        self._first: tuple[Tensor, list[Kept]] | None = None
        self.train(False)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and of the matrix products."""
        stack: Any = self.stack
        dtype: torch.dtype = stack.dtype
        return dtype

    def train(self, mode: bool = True) -> "FrozenLLM":
        """Stay in eval mode, whatever `mode` says: dropout would make the frozen LLM a moving target."""
        super().train(False)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without CUDA graphs, which belong to the process that captured them."""
        return {**super().__getstate__(), "captured": {}, "_first": None}  # type: ignore[no-untyped-call]

    def blocks(self) -> nn.ModuleList:
        """The decoder layers: the outermost list of modules, and the longest of those."""
        lists = [(name, module) for name, module in self.named_modules() if isinstance(module, nn.ModuleList)]
        return max(lists, key=lambda item: (-item[0].count("."), len(item[1])))[1]

    def identity_like(self, stored: Mapping[str, Any]) -> dict[str, str | None]:
        """`identity`, with the kind of digest that `stored` has: older checkpoints hold one of the files' bytes."""
        if "llm_tensors" in stored or "llm_weights" not in stored or not self.files:
            return self.identity
        names = {key: value for key, value in self.identity.items() if key != "llm_tensors"}
        return {**names, "llm_weights": files_digest(self.files)}

    def shard(self, device: torch.device) -> None:
        """Split the weights of the blocks over the processes, on `device`; every process must run every step."""
        shard_blocks(self.blocks(), device)
        self.sharded = True

    def forward(
        self, inputs_embeds: Float[Tensor, "B T {self.d}"], first: Float[Tensor, " {self.d}"] | None = None
    ) -> Float[Tensor, "B {self.hidden_size}"]:
        """Hidden state of the last position, after the final norm; gradients flow back to `inputs_embeds`.

        `first`: the vector that every prefix begins with, if it is the same in all; then nothing flows back to it.
        """
        B, T, _ = inputs_embeds.shape
        graphs = self.captured.get((B, T, torch.is_grad_enabled()))
        return (self._run(inputs_embeds, first) if graphs is None else graphs(inputs_embeds)).float()

    def _run(self, x: Float[Tensor, "B T d"], first: Float[Tensor, " d"] | None = None) -> Float[Tensor, "B h"]:
        compiled = self.compiled_for == tuple(x.shape[:2]) and torch.is_grad_enabled()
        stack: Any = self.stack
        if (kept := self._keep(x, first)) is not None:
            x, stack = x[:, 1:], functools.partial(stack, kept=kept)
        if compiled or self.compiled_for is None:
            # On a CPU, `ROWS` prefixes a thread, where a layer is work enough for that.
            return over_batch(stack, x, ROWS, pays=self._pays(len(x), x.shape[1]), splits=self._splits)
        with torch.compiler.set_stance("force_eager"):
            return stack(x)  # type: ignore[no-any-return]

    def _keep(self, x: Float[Tensor, "B T d"], first: Float[Tensor, " d"] | None) -> list[Kept] | None:
        """Keys and values of the first vector, so that batches on a CPU need not compute it; None: x holds all."""
        stack = self.stack
        if first is None or len(x) == 1 or self.sharded or x.device.type != "cpu" or not isinstance(stack, FastStack):
            return None
        if self._first is None or not torch.equal(self._first[0], first):
            self._first = first.clone(), stack.keep(first)
        return self._first[1]

    def trains_beside_one_thread(self, batch: int, tokens: int) -> bool:
        """Whether training may run under `threads.sharing`: this LLM takes rows of the batch to its threads, or is too
        small for any. Elsewhere the way back, which is autograd's, needs all threads.
        """
        return self._splits or not self._pays(batch, tokens)

    @property
    def _splits(self) -> bool:
        return isinstance(self.stack, FastStack) and self.compiled_for is None and not self.sharded

    def _pays(self, batch: int, tokens: int) -> bool:
        return 2 * self._layer_weights * min(batch, ROWS) * tokens >= PAYS

    def capture(self, x: Float[Tensor, "B T d"]) -> None:
        """Run prefixes of x's shape as CUDA graphs, with gradients if x requires them; logged if that fails."""
        if graphs := captured(self._run, x):
            B, T, _ = x.shape
            self.captured[B, T, x.requires_grad] = graphs


class LastHidden(nn.Module):
    """Transformers' own module, read out at the last position: the reference path."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, x: Float[Tensor, "B T d"]) -> Float[Tensor, "B h"]:
        """Run in the compute dtype."""
        hidden: Tensor = self.model(inputs_embeds=x.to(self.dtype), use_cache=False).last_hidden_state
        return hidden[:, -1]
