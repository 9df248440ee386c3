"""What a report says of a classifier."""

from data.manifest import Record


class HeadFigures(Record):
    """How one head does on examples that it has not seen."""

    name: str
    positive: int
    """Examples whose answer is yes."""
    calibration_error: float
    """Expected calibration error, 10 bins of equal width (Naeini et al., AAAI 2015)."""
    ranking: float
    """Area under the ROC curve."""
    off: str = ""
    """Why it is not used; empty where it is."""


class LanguageFigures(Record):
    """What became of one language."""

    language: str
    examples: int
    heads: tuple[HeadFigures, ...] = ()
    """Those with enough examples."""
    off: str = ""
    """Why there is no model; empty where there is one."""


class TrainingFigures(Record):
    languages: tuple[LanguageFigures, ...] = ()


class ClassifierFigures(TrainingFigures):
    """Of one stage that may have a classifier."""

    stage: str
    number: int
    """Its place among the stages, from 1."""
    file: str = ""
    """The classifier's, in ``.classifiers`` beside the data set unless the stage named its own; empty where there is none."""
    checksum: str = ""
