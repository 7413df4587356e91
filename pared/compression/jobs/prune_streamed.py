"""The method of a prune job on a large decoder: layer by layer from folder to folder, in the memory of about one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pared.compression.data import Data, load_dataset
from pared.compression.data.class_names import read_as_by
from pared.compression.data.samples import Split
from pared.compression.decoders.config import EMBEDDING, HEAD
from pared.compression.decoders.running import Layer, Running, Sample
from pared.compression.decoders.scoring import Kept, Scores, Widths, removable
from pared.compression.decoders.stored import StoredDecoder, hold_whole, opened
from pared.compression.decoders.writing import write_decoder
from pared.compression.export.formats import Written
from pared.compression.jobs.stages import Stages, beside
from pared.compression.jobs.streamed_sizes import goal_of, layer_reports, left_of, macs_of, removed
from pared.compression.loading import LoadedModel
from pared.compression.measuring.quality import Assessment, compare
from pared.compression.measuring.size import count_bytes
from pared.compression.report.parts import Measured
from pared.compression.report.publishing import publish
from pared.compression.report.verdict import prune_verdict
from pared.compression.training.seeds import seed_of
from pared.compression.work import Work
from pared.criteria import CRITERIA
from pared.errors import InvalidData, UnsupportedModel
from pared.reports import Measurement, Quality, Report
from pared.specs import PruneSpec
from pared.wording import metric_name

MODEL = "model.zip"
SEEN, VALIDATED, TESTED = 64, 32, 64
"""Most texts that importance is read off, and that the loss before and after is measured on."""
_BLOCK_BYTES = 1 << 22
_NOT_RUN = "Layer by layer no latency is measured, and multiply-adds are counted for the longest of the texts alone."


@dataclass(frozen=True)
class _Texts:
    """The texts of a job: those that importance is read off, then those of validation, then those of the test."""

    data: Data
    samples: list[Sample]
    validated: int
    notes: list[str]

    @property
    def longest(self) -> int:
        return max(len(sample.tokens) for sample in self.samples)


def prune_streamed(spec: PruneSpec, work: Work, stages: Stages) -> Report:
    """Score, cut and measure a decoder layer by layer, and report on it.

    Raises:
        NothingToPrune: nothing can go.
        ParedError: folder, texts or settings that cannot be; the text says what to do.
    """
    source, target = work.models["model"].path, work.directory / MODEL
    target.unlink(missing_ok=True)  # of an earlier attempt
    stages.enter("validate")
    with opened(source, stages.beat) as stored:
        left, amount = left_of(spec, stored, source.stat().st_size)
        texts = _texts_of(spec, work, stored)
        upload_bytes = beside(lambda: count_bytes(source))
        hold_whole(stored, stages.beat)
        before_counts = _counted(stored, stages.beat)
        stages.enter("baseline" if texts else "compress")
        kept, losses = _chosen(spec, stored, texts, left, stages)
        baseline = None if texts is None else _assessed(texts, losses)
        if baseline is not None:
            metric = metric_name(baseline.quality.metric)
            work.observer.log(f"before: test {metric} {baseline.quality.test.value:.4f}")
        stages.enter("compress")
        write_decoder(stored, kept, target, stages.beat)
        stages.enter("evaluate")
        with opened(target, stages.beat) as smaller:
            hold_whole(smaller, stages.beat)
            after_counts = _counted(smaller, stages.beat)
            final = None if texts is None else _assessed(texts, _losses(smaller, texts, stages))
            tokens = None if texts is None else texts.longest
            parts = [
                _measurement(counts, None if tokens is None else macs_of(each.decoder, tokens))
                for counts, each in ((before_counts, stored), (after_counts, smaller))
            ]
        stages.enter("export")
        measured = Measured(parts[0], parts[1], "huggingface", [_NOT_RUN])
        written = Written({"huggingface": [target]}, [])
        before, after = measured.with_files(upload_bytes(), written.paths, baseline, final)
        comparison = None if baseline is None or final is None else compare(baseline, final)
        shares = after.parameters / before.parameters, after.file_bytes / before.file_bytes
        goal = goal_of(spec, amount, *shares)
        verdict = prune_verdict(spec.granularity, before, after, comparison)
        zeros = {name: size - alive for name, (size, alive) in after_counts.items()}
        return publish(
            spec,
            work,
            verdict=verdict if goal is None else f"{goal.sentence} {verdict}",
            sizes_and_scores=(before, after),
            layers=list(layer_reports(stored, kept, _by_upload(kept, zeros), spec.granularity)),
            granularity=spec.granularity,
            baseline=baseline,
            measured=measured,
            written=written,
            training=None,
            warnings=[*work.models["model"].notes, *_notes(stored), *([] if texts is None else texts.notes)],
            goal=goal,
            comparison=comparison,
            removed=removed(stored, kept),
            seconds=stages.finish(),
        )


def outline_of(path: Path) -> LoadedModel:
    """The result as a module of tensors without values, for whoever cannot hold them all."""
    module = nn.Module()
    with opened(path) as stored:
        for name in stored.places:
            empty = torch.empty(stored.shape(name), dtype=stored.dtype(name), device="meta")
            module._parameters[name] = nn.Parameter(empty, requires_grad=False)
    return LoadedModel(module=module, format="huggingface", flavour="traced", runs=False)


# -- texts ----------------------------------------------------------------------------------------


def _texts_of(spec: PruneSpec, work: Work, stored: StoredDecoder) -> _Texts | None:
    """The texts of the job's data set, with what its tokenizer or the folder's makes of them.

    Raises:
        InvalidData: they are no texts, or not of this vocabulary.
        UnsupportedModel: the decoder cannot be run on them.
    """
    if work.dataset is None:
        return None
    decoder = stored.decoder
    if decoder.rotary is None:
        raise UnsupportedModel(
            "config.json asks for rotary positions of a kind that is not computed layer by layer (`default` and "
            "`llama3` are). Leave the data set out to prune by weights alone."
        )
    dataset = read_as_by(stored.contents.path, work.dataset)
    data = load_dataset(dataset, task="language_modeling", preprocess=spec.preprocess, seed=spec.seed)
    samples: list[Sample] = []
    counts: dict[Split, int] = {}
    limits: dict[Split, int] = {"train": SEEN, "val": VALIDATED, "test": TESTED}
    for split, most in limits.items():
        rows = data.spread(split, most)
        counts[split] = len(rows)
        for row in rows:
            (tokens, *others), targets = data.take(split, row[None])
            if others or tokens.dtype != torch.int64 or tokens.dim() != 2 or targets.shape != tokens.shape:
                raise InvalidData(
                    "A decoder is scored on texts, by the token that follows each one. Give .jsonl or .parquet with a "
                    "field `text`, or token ids as `input_ids`, without labels."
                )
            samples.append(Sample(tokens[0], targets[0], is_seen=split == "train"))
    low, high = (int(each) for each in torch.cat([sample.tokens for sample in samples]).aminmax())
    if low < 0 or high >= decoder.vocabulary:
        raise InvalidData(
            f"The texts have token ids from {low:,} to {high:,}, and the model has an embedding for "
            f"{decoder.vocabulary:,} (vocab_size): they are of another model's tokenizer."
        )
    longest = max(len(sample.tokens) for sample in samples)
    if decoder.window is not None and longest > decoder.window:
        raise InvalidData(
            f"The longest text has {longest:,} tokens, and a token of this model looks back at {decoder.window:,} "
            f"(sliding_window), which is not computed layer by layer: set `preprocess.max_length` to {decoder.window}."
        )
    used = (
        f"Importance and loss are of {counts['train']} training, {counts['val']} validation and {counts['test']} test "
        f"texts of at most {longest:,} tokens (task=language_modeling), in float32; there was no retraining."
    )
    return _Texts(data, samples, counts["val"], [*data.warnings, used])


def _assessed(texts: _Texts, losses: Tensor) -> Assessment:
    """How good the answers are. `losses`: of the texts of validation, then of the test, as `Running` gives them."""
    task = texts.data.task
    condensed = torch.cat([torch.zeros(len(losses), 2), losses.float()], 1)
    validation, test = condensed[: texts.validated], condensed[texts.validated :]
    targets = torch.zeros(len(test), 0)
    loss = task.mean_loss(test, targets)
    quality = Quality(
        metric=task.metric,
        test=task.interval(test, targets),
        validation=task.score(validation, targets[:0]),
        loss=loss if math.isfinite(loss) else None,
        samples=len(test),
        beside=task.beside(test, targets),
    )
    every, every_validated = (torch.ones(len(each), dtype=torch.bool) for each in (test, validation))
    return Assessment(test, targets, validation, every, every_validated, task, quality)


# -- passes ---------------------------------------------------------------------------------------


def _chosen(
    spec: PruneSpec, stored: StoredDecoder, texts: _Texts | None, left: Widths, stages: Stages
) -> tuple[Kept, Tensor]:
    """What stays, and the losses of the upload, by one pass over its layers."""
    observed = CRITERIA[spec.criterion].needs_data
    generator = torch.Generator().manual_seed(seed_of(spec.seed, "prune", 0))
    scores = Scores(stored.decoder, spec.granularity, spec.criterion, generator)
    layer = Layer(stored)
    running = None if texts is None else Running(stored, texts.samples, stages.beat)
    if running is not None:
        running.embed()
    for index in range(stored.decoder.layers):
        layer.load(index)
        seen = None if running is None else running.through(layer, observed=observed)
        scores.add(layer, seen if observed else None)
        stages.beat()
    kept = scores.kept(left, removable(stored.decoder, spec.include, spec.exclude))
    if running is None:
        return kept, torch.zeros(0, 3)
    losses = running.losses()
    running.close()
    return kept, losses


def _losses(stored: StoredDecoder, texts: _Texts, stages: Stages) -> Tensor:
    """The losses of a result, as its file is."""
    running = Running(stored, [sample for sample in texts.samples if not sample.is_seen], stages.beat)
    running.embed()
    layer = Layer(stored)
    for index in range(stored.decoder.layers):
        layer.load(index)
        running.through(layer, observed=False)
    losses = running.losses()
    running.close()
    return losses


def _counted(stored: StoredDecoder, tick: Callable[[], None]) -> dict[str, tuple[int, int]]:
    """Of each tensor its numbers, and those that are not zero; `lm_head` that is the embedding counts once.

    Raises:
        UnsupportedModel: one holds NaN or infinity, or two differ that are one by config.json.
    """
    counts = {}
    tied = stored.decoder.tied and HEAD in stored.places
    for name in stored.places:
        alive = 0
        for begin, block in stored.blocks(name, _BLOCK_BYTES):
            if not bool(block.isfinite().all()):
                raise UnsupportedModel(f"{name} holds NaN or infinity: the model is broken. Fetch or save it again.")
            if tied and name == HEAD and not torch.equal(block, stored.rows(EMBEDDING, begin, begin + len(block))):
                raise UnsupportedModel(
                    f"{EMBEDDING} and {HEAD} are one weight by config.json (tie_word_embeddings), and the folder holds "
                    "two that differ. Set tie_word_embeddings to false if both were trained, or save the folder again."
                )
            alive += int(block.count_nonzero())
            tick()
        if not (tied and name == HEAD):
            counts[name] = math.prod(stored.shape(name)), alive
    return counts


# -- the report -----------------------------------------------------------------------------------


def _measurement(counts: dict[str, tuple[int, int]], macs: int | None) -> Measurement:
    return Measurement(
        parameters=sum(size for size, _ in counts.values()),
        nonzero_parameters=sum(alive for _, alive in counts.values()),
        macs=macs,
        file_bytes=0,
        compressed_bytes=0,
    )


def _by_upload(kept: Kept, values: dict[str, int]) -> dict[str, int]:
    """Values of the result's tensors by their names in the upload, where layers have other numbers."""
    found = {}
    for name, value in values.items():
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            parts[2] = str(kept.layers[int(parts[2])])
        found[".".join(parts)] = value
    return found


def _notes(stored: StoredDecoder) -> list[str]:
    notes = []
    if stored.left_out:
        notes.append(
            f"{len(stored.left_out)} tensors that follow from config.json were left out (rotary_emb.inv_freq)."
        )
    if stored.contents.code:
        notes.append("Code in the folder was neither run nor kept.")
    return notes
