"""Rex-Omni at its true size on a GPU: ``python -m benchmarks.gpu``; ``--small`` for any machine.

Speed does not depend on what the weights say, so they are random: a checkpoint of the published
shape is written to a temporary folder (7.5 GB) and loaded and asked as any other. Random weights
would answer anything of any length; a logits processor puts the same answer, of boxes that differ,
into the mouth of all, so that every answer has exactly as many tokens as wanted. All else is what
labels images too: the processor, attention, cache, recorder, penalty and loop watch.

The tokenizer is the embedded checkpoint's, of 1,524 entries, before a vocabulary of the true size:
prompts are some ten tokens longer than with the published one, beside 999 of the image.

The floor of a step is the time to read the weights of the language model once, at the bandwidth
that copying memory reaches on this device: no way of generating token by token from weights of
this precision is faster, whatever the batch.
"""

import math
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import (
    LogitsProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.utils.logging import disable_progress_bar

from labeling_pipeline.models import rex_omni_protocol as protocol
from labeling_pipeline.models.cards import Dtype, ModelSettings
from labeling_pipeline.models.registry import EMBEDDED, find_card
from labeling_pipeline.models.rex_omni_runtime import PreparedRequest, RexOmniRuntime
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.tasks import Request, Task

LABELS = ("circle", "person", "square", "triangle", "star")
REPEATS = 2
disable_progress_bar()


@dataclass(frozen=True)
class Scale:
    """What is measured. size_px: (width, height). tokens: of every answer."""

    text: dict[str, Any]
    vision: dict[str, Any]
    dtype: Dtype
    size_px: tuple[int, int]
    tokens: int
    batches: tuple[int, ...]


# Qwen2.5-VL-3B, whose shape Rex-Omni keeps: its coordinates are the last entries of the vocabulary.
FULL = Scale(
    text={
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1_000_000.0,
            "mrope_section": [16, 24, 24],
        },
    },
    vision={
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    dtype="bfloat16",
    size_px=(1024, 768),
    tokens=256,
    batches=(1, 8, 32),
)

SMALL = Scale(
    text={
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [8, 12, 12],
        },
    },
    vision={
        "depth": 4,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": 256,
        "fullatt_block_indexes": [1, 3],
    },
    dtype="float32",
    size_px=(224, 168),
    tokens=40,
    batches=(1, 4, 8),
)


def write_checkpoint(folder: Path, scale: Scale, device: torch.device) -> None:
    """A checkpoint of this shape with random weights, and the embedded one's tokenizer."""
    embedded = Path(find_card(EMBEDDED).checkpoint)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "preprocessor_config.json",
    ):
        shutil.copy(embedded / name, folder)
    small = Qwen2_5_VLConfig.from_pretrained(embedded)
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ends = {name: getattr(small.text_config, name) for name in ("bos_token_id", "eos_token_id")}
    config = Qwen2_5_VLConfig(
        text_config={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 128_000,
            "tie_word_embeddings": True,
            **ends,
            **scale.text,
        },
        vision_config={"tokens_per_second": 2, **scale.vision},
        tie_word_embeddings=True,
        **{name: getattr(small, name) for name in tokens},
    )
    torch.manual_seed(0)
    with device:
        model = Qwen2_5_VLForConditionalGeneration(config).to(getattr(torch, scale.dtype))
    model.save_pretrained(folder)


class ForcedAnswer(LogitsProcessor):
    """Makes every sequence say the same: answer[i] at step i."""

    def __init__(self, answer: Sequence[int], prompt_length: int) -> None:
        self._answer = answer
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -math.inf)
        forced[:, self._answer[input_ids.shape[1] - self._prompt_length]] = 0.0
        return forced


def answer_ids(runtime: RexOmniRuntime, labels: Sequence[str], tokens: int) -> list[int]:
    """Boxes that differ for every label, in so many tokens, without an end."""
    rng = np.random.default_rng(0)
    share = math.ceil(tokens / len(labels))
    ids: list[int] = []
    for label in labels:
        bins = rng.integers(0, protocol.BINS, (share, 4))
        boxes = ", ".join("".join(f"<{b}>" for b in box) for box in bins)
        text = f"{protocol.REF_START}{label}{protocol.REF_END}{protocol.BOX_START}{boxes}"
        ids += runtime.tokenizer(text, add_special_tokens=False).input_ids[:share]
    return ids[:tokens]


@contextmanager
def forced(runtime: RexOmniRuntime, answer: Sequence[int]) -> Iterator[None]:
    """Within, the runtime's generations say this answer, and nothing after it."""
    generate = runtime.model.generate

    def say(**inputs: Any) -> torch.Tensor:
        inputs["logits_processor"].append(ForcedAnswer(answer, inputs["input_ids"].shape[1]))
        return generate(**inputs | {"max_new_tokens": len(answer)})

    runtime.model.generate = say
    try:
        yield
    finally:
        runtime.model.generate = generate


class Bench:
    """Measurements of one loaded checkpoint."""

    def __init__(self, folder: Path, scale: Scale, device: torch.device, static: bool) -> None:
        self.scale = scale
        self.device = device
        settings = ModelSettings(
            device=str(device), dtype=scale.dtype, static_cache=static, max_new_tokens=scale.tokens
        )
        card = find_card(str(folder)).with_settings(settings)
        self.runtime = RexOmniRuntime(card, settings)

    def requests(self, count: int, labels: Sequence[str] = LABELS) -> list[Request]:
        """So many images, each asked for these labels."""
        scenes = (draw_scene(np.random.default_rng(i), *self.scale.size_px) for i in range(count))
        return [Request(scene.image, Task.DETECTION, tuple(labels)) for scene in scenes]

    def prepared(self, count: int, labels: Sequence[str] = LABELS) -> list[PreparedRequest]:
        """The same, ready for the forward pass."""
        return [self.runtime.prepare(request) for request in self.requests(count, labels)]

    def forward_s(self, prepared: list[PreparedRequest], answer: Sequence[int]) -> float:
        """Seconds of one forward pass with this answer; the best of some, after one to warm up."""

        def run() -> None:
            (first, *_) = self.runtime.forward(prepared)
            if len(first.tokens) != len(answer):
                raise RuntimeError(f"expected {len(answer)} tokens, got {len(first.tokens)}")

        with forced(self.runtime, answer):
            run()
            return min(self._seconds(run) for _ in range(REPEATS))

    def _seconds(self, work: Callable[[], None]) -> float:
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def start_memory(self) -> None:
        """Forget the peak so far."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_memory_gb(self) -> float:
        """Since it was last forgotten; on a CPU, of the whole process so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return kib * 1024 / 1e9

    def prepare_s(self) -> float:
        """Seconds to prepare one image, on one thread."""
        requests = self.requests(8)
        return self._seconds(lambda: [self.runtime.prepare(r) for r in requests]) / len(requests)

    def bandwidth(self) -> float:
        """Bytes a second that copying memory reads and writes."""
        size = 1 << (30 if self.device.type == "cuda" else 27)
        source = torch.ones(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        target.copy_(source)
        return 2 * size / min(self._seconds(lambda: target.copy_(source)) for _ in range(10))

    def step_bytes(self) -> int:
        """Weights that every step reads. The head is among them: it is the embedding, too."""
        return sum(
            p.numel() * p.element_size()
            for p in self.runtime.model.model.language_model.parameters()
        )


def measure_batches(bench: Bench, cache: str, floor_s: float, table: Table) -> None:
    """One row for each batch size."""
    answer = answer_ids(bench.runtime, LABELS, bench.scale.tokens)
    alone = None
    for size in bench.scale.batches:
        bench.start_memory()
        prepared = bench.prepared(size)
        whole_s = bench.forward_s(prepared, answer)
        step_s = (whole_s - bench.forward_s(prepared, answer[:1])) / (len(answer) - 1)
        rate = size / whole_s
        alone = alone or rate
        table.add_row(
            cache,
            str(size),
            f"{rate:.2f}",
            f"{rate * len(answer):.0f}",
            f"{rate / alone:.1f}",
            f"{step_s * 1e3:.2f}",
            f"{step_s / floor_s:.1f}",
            f"{bench.peak_memory_gb():.1f}",
        )


def measure_groups(bench: Bench, cache: str, table: Table) -> None:
    """Five labels of an image in one prompt against one prompt for each."""
    tokens = bench.scale.tokens
    for size in bench.scale.batches:
        together_s = bench.forward_s(
            bench.prepared(size), answer_ids(bench.runtime, LABELS, tokens)
        )
        alone = bench.prepared(size, LABELS[:1])
        shares = (tokens // len(LABELS), tokens)
        apart_s = [
            len(LABELS) * bench.forward_s(alone, answer_ids(bench.runtime, LABELS[:1], share))
            for share in shares
        ]
        table.add_row(
            cache,
            str(size),
            f"{size / together_s:.2f}",
            *(f"{size / seconds:.2f} ({seconds / together_s:.1f} x)" for seconds in apart_s),
        )


def main(
    small: Annotated[bool, typer.Option(help="small sizes, on a CPU, in a minute")] = False,
) -> None:
    """Images/s, tokens/s, memory and step time of Rex-Omni's shape with random weights."""
    if not small and not torch.cuda.is_available():
        sys.exit("no CUDA GPU here: run where there is one, or with --small")
    scale = SMALL if small else FULL
    device = torch.device("cpu" if small else "cuda")
    console = Console()
    columns = ("cache", "batch", "images/s", "tokens/s", "x one by one", "ms/step", "x floor")
    batches = Table(*columns, "peak GB", box=box.SIMPLE_HEAD, pad_edge=False)
    shares = (scale.tokens // len(LABELS), scale.tokens)
    groups = Table(
        *("cache", "batch", f"five labels\nin {scale.tokens} tokens"),
        *(f"five prompts\nof {share} tokens each" for share in shares),
        title="images/s, and how many times faster the one prompt is",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder, scale, device)
        floor_s = None
        for cache in ("dynamic", "static"):
            bench = Bench(folder, scale, device, cache == "static")
            if floor_s is None:
                floor_s = bench.step_bytes() / bench.bandwidth()
                _describe(bench, floor_s, console)
            measure_batches(bench, cache, floor_s, batches)
            measure_groups(bench, cache, groups)
            del bench
            if device.type == "cuda":
                torch.cuda.empty_cache()
    console.print(batches)
    console.print(groups)


def _describe(bench: Bench, floor_s: float, console: Console) -> None:
    scale, model = bench.scale, bench.runtime.model
    where = "CPU" if bench.device.type == "cpu" else torch.cuda.get_device_name()
    width, height = scale.size_px
    console.print(
        f"{model.num_parameters() / 1e6:,.0f} million random parameters in {scale.dtype} on "
        f"{where}, attention {model.config._attn_implementation}; images of {width} x {height} px, "
        f"answers of {scale.tokens} tokens. Preparing an image takes "
        f"{bench.prepare_s() * 1e3:.0f} ms of one thread. A step reads "
        f"{bench.step_bytes() / 1e9:.2f} GB of weights: at "
        f"{bench.step_bytes() / floor_s / 1e9:,.0f} GB/s its "
        f"floor is {floor_s * 1e3:.2f} ms.",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    typer.run(main)
