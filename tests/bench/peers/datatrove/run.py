"""One process of datatrove, in its own environment: ``run.py '{"step": ..., "rank": 0, "world": 2, ...}'``.

Says ``ready`` on standard output when all is imported and warm, begins when a line comes on standard input, and ends with a
line of JSON: CPU and wall seconds, and the peak of its memory.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.logging import logger
from datatrove.utils.text import TextNormConfig
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

SENTENCE = "It isn't a long text, but it has some words. "
BUCKETS = 14


class Words:
    """For text whose words are already lower case with one space between them."""

    def word_tokenize(self, text):
        return text.split(" ")


def rules(config):
    """FineWeb's order; its thresholds, with the paper's for duplicated lines."""
    filters = [
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(char_duplicates_ratio=0.1),
    ]
    for each in filters:  # spaCy is loaded by the first text
        each.filter(Document(text=SENTENCE * 30, id=""))
    return [JsonlReader(config["input"]), *filters, JsonlWriter(config["output"], compression=None)], [config["rank"]]


def minhash_config():
    off = TextNormConfig(**{name: False for name in TextNormConfig.__dataclass_fields__})
    return MinhashConfig(n_grams=5, num_buckets=BUCKETS, hashes_per_bucket=8, norm_config=off)


def signatures(config):
    step = MinhashDedupSignature(config["output"] + "/signatures", config=minhash_config())
    step.word_tokenizer = Words()
    step.get_signature(step.get_shingles(SENTENCE))
    return [JsonlReader(config["input"]), step], [config["rank"]]


def buckets(config):
    step = MinhashDedupBuckets(config["output"] + "/signatures", config["output"] + "/buckets", config=minhash_config())
    return [step], range(config["rank"], BUCKETS, config["world"])


def cluster(config):
    step = MinhashDedupCluster(config["output"] + "/buckets", config["output"] + "/removed", config=minhash_config())
    return [step], [0] if config["rank"] == 0 else []


def tokens(config):
    """Its fastest way: documents in their order, whole texts to the tokenizer."""
    step = DocumentTokenizer(
        config["output"], tokenizer_name_or_path=config["tokenizer"], eos_token="</s>", shuffle_documents=False
    )
    step.tokenizer.encode(SENTENCE)
    return [JsonlReader(config["input"]), step], [config["rank"]]


def write_tokenizer(config):
    """A SentencePiece BPE model's pieces (in ``config["pieces"]``: piece and kind) as a tokenizer of Hugging Face's kind. Of two
    merges the one whose result has the smaller id, which is the better score, comes first."""
    pieces = json.loads(Path(config["pieces"]).read_text())
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = [
        (piece[:i], piece[i:])
        for piece, learnt in pieces
        if learnt
        for i in range(1, len(piece))
        if piece[:i] in vocabulary and piece[i:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.save(config["tokenizer"])
    texts = json.loads(Path(config["texts"]).read_text())
    return {"ids": [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]}


def run(config):
    steps = {"rules": rules, "signatures": signatures, "buckets": buckets, "cluster": cluster, "tokens": tokens}
    pipeline, ranks = steps[config["step"]](config)
    world = BUCKETS if config["step"] == "buckets" else 1 if config["step"] == "cluster" else config["world"]
    print("ready", flush=True)
    sys.stdin.readline()
    wall, cpu = time.perf_counter(), time.process_time()
    for rank in ranks:
        data = None
        for step in pipeline:
            data = step(data, rank, world)
        if data is not None:
            for _ in data:
                pass
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    logger.remove()
    config = json.loads(sys.argv[1])
    print(json.dumps(write_tokenizer(config) if config["step"] == "write_tokenizer" else run(config)), flush=True)
