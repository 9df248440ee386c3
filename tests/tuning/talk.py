"""What trials say, heard as a study's loop hears it: real ones take seconds to say something."""

from collections.abc import Sequence

from tuning.trials import Measured, News, Trials


def heard(trials: Trials) -> News:
    """The next news; there is one at a time."""
    said: Sequence[News] = []
    while not said:
        said = trials.news(120)
    (news,) = said
    return news


def to_the_end(trials: Trials) -> list[News]:
    """What a trial says that is let go on whenever it has measured."""
    said = [heard(trials)]
    while isinstance(said[-1], Measured):
        trials.answer(said[-1].number, go_on=True)
        said.append(heard(trials))
    return said


def steps(said: Sequence[News]) -> list[int]:
    """Of the measurements."""
    return [news.step for news in said if isinstance(news, Measured)]
