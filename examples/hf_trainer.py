"""A callback for Hugging Face's Trainer that sends the model to pared once it is trained.

    python hf_trainer.py [DIRECTORY]

`SendToPared` is what to copy; the rest trains a tiny BERT on a made-up corpus. It needs transformers with accelerate,
and a pared server: `pared up`, or PARED_URL and PARED_API_KEY of another one.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import pared


class SendToPared(TrainerCallback):
    """Submits a prune job at the end of training; `job` is there then.

    Training is not held up: wait for the job whenever you want its result, or let a webhook tell you.
    """

    def __init__(self, client: pared.Client, dataset: str | Path | None = None, **fields: Any) -> None:
        """Args: dataset, fields: as `client.prune` takes them."""
        self.client, self.dataset, self.fields = client, dataset, fields
        self.job: pared.Job | None = None

    def on_train_end(self, args, state, control, *, model=None, processing_class=None, **others) -> None:
        """Save the model with its tokenizer, and send the folder; of several processes the first does so."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / "trained"
        model.save_pretrained(folder)
        if processing_class is not None:
            processing_class.save_pretrained(folder)
        self.job = self.client.prune(folder, self.dataset, **self.fields)
        print(f"sent to pared: {self.job}")


def corpus(count: int) -> list[dict[str, str | int]]:
    """Reviews that somebody made up: 0 is bad, 1 is good."""
    chance = random.Random(0)
    words = ("dull", "flat", "clumsy", "cold"), ("fine", "bright", "moving", "warm")
    things = ("film", "plot", "cast", "ending", "score")
    return [
        {"text": f"the {chance.choice(things)} is {chance.choice(words[n % 2])}", "label": n % 2} for n in range(count)
    ]


def main(directory: Path) -> None:
    """Train, prune to half of the feed-forward width, download a folder that transformers loads."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    rows = corpus(240)
    texts = directory / "reviews.jsonl"
    texts.write_text("\n".join(map(json.dumps, rows)))

    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(
        [str(row["text"]) for row in rows], trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"])
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=words.get_vocab_size(),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=64,
        )
    )
    encoded = [{**tokenizer(str(row["text"])), "labels": row["label"]} for row in rows]

    client = pared.Client()
    sender = SendToPared(
        client, texts, amount=0.5, retrain={"epochs": 2, "optimizer": "adam", "lr": 1e-3}, outputs=["huggingface"]
    )
    Trainer(
        model=model,
        args=TrainingArguments(
            directory / "training",
            num_train_epochs=4,
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            per_device_train_batch_size=16,
            learning_rate=2e-3,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=encoded,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[sender],
    ).train()

    job = sender.job.watch()
    print(job.report())
    print("saved", job.download(directory / "small.zip"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
