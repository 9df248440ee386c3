"""What a prepared directory says of itself: from what the tasks wrote to its manifest."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from data.buckets import bucket_shares
from data.classifier.training import classifier_figures
from data.corpus import Corpus, cells
from data.files import checksum
from data.funnel import drops_of
from data.manifest import SPLITS, TOKENIZER_NAME, Cell, Count, Manifest, Segment, ShardInfo
from data.packing import PackResult, limits_of
from data.sources import InputFile
from data.spec import DataSpec, TokenizerSpec
from data.tokenizer import Tokenizer


def manifest_of(
    identity: str,
    data: DataSpec,
    asked: TokenizerSpec,
    corpus: Corpus,
    packed: list[PackResult],
    files: list[list[InputFile]],
    tokenizer: Tokenizer,
    work: Path,
) -> Manifest:
    """All but the losses, which are measured with its help."""
    in_order = sorted((s for result in packed for s in result.shards), key=lambda s: (SPLITS.index(s.split), s.segment, s.cell))
    shards = tuple(in_order)
    return Manifest(
        hash=identity,
        sequence_length=data.sequence_length,
        chain_segments=data.chain_segments,
        document_alignment=data.document_alignment,
        bucketed=bool(data.length_buckets),
        vocab_size=tokenizer.vocab_size,
        vocab_size_asked=asked.vocab_size if asked.path is None else None,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        tokenizer_checksum=checksum(work / TOKENIZER_NAME),
        classifiers={f"stages/{each.number - 1}": each.checksum for each in classifier_figures(data) if each.checksum},
        cells=tuple(
            Cell(
                language=language,
                domain=domain,
                weight=weight,
                counts_as=data.mixture.lines(language, domain) if data.mixture else None,
                train=_count(s for s in shards if (s.cell, s.split) == (cell, "train")),
                held_out=_count(s for s in shards if (s.cell, s.split) == (cell, "held_out")),
            )
            for cell, ((language, domain), weight) in enumerate(cells(data).items())
        ),
        segments=_segments(data, shards),
        shards=shards,
        documents_files=tuple(result.documents for result in packed if result.documents is not None),
        input_files=sum(map(len, files)),
        input_bytes=sum(file.size for of_source in files for file in of_source),
        documents_read=corpus.read,
        drops=drops_of((*corpus.funnel, *limits_of(packed))),
        unigram_loss=0.0,
        bigram_loss=0.0,
    )


def _segments(data: DataSpec, shards: Sequence[ShardInfo]) -> tuple[Segment, ...]:
    lengths = [length // data.chain_segments for length in data.train_lengths]
    counts = [
        tuple(
            _count(s for s in shards if (s.segment, s.cell, s.split) == (number, cell, "train"))
            for cell in range(len(data.cells))
        )
        for number in range(len(lengths))
    ]
    fractions = [segment.fraction for segment in data.segments]
    if data.length_buckets:
        room = [[count.rows * length for count in of_bucket] for of_bucket, length in zip(counts, lengths, strict=True)]
        fractions = [float(sum(shares)) for shares in bucket_shares(list(data.cells.values()), room)]
    of_segments = zip(lengths, fractions, counts, strict=True)
    return tuple(Segment(sequence_length=length, fraction=share, cells=cells_) for length, share, cells_ in of_segments)


def _count(shards: Iterable[ShardInfo]) -> Count:
    mine = list(shards)
    return Count(
        documents=sum(shard.documents for shard in mine),
        tokens=sum(shard.tokens for shard in mine),
        rows=sum(shard.rows for shard in mine),
    )
