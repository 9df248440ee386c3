"""A study followed live: its page under the job's bars; off a terminal, a line for each trial that ends."""

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from api.cli.feed import Update
from api.cli.study_pages import point_text, study_page
from api.cli.watch import PlainLines, Screen
from service.studies import StudyView
from tuning.views import TrialView

Look = Callable[[], tuple[StudyView, Sequence[TrialView]]]


class StudyScreen(Screen):
    """``look`` asks the service for the study; it is called with each update."""

    def __init__(self, look: Look) -> None:
        super().__init__()
        self._look = look
        self.study: StudyView | None = None
        self.trials: Sequence[TrialView] = ()

    def take(self, update: Update) -> list[Text]:
        if not update.away:
            self.study, self.trials = self._look()
        return super().take(update)

    def render(self) -> RenderableType:
        if self.study is None:
            return super().render()
        return Group(super().render(), Text(), study_page(self.study, self.trials))


class TrialLines(PlainLines):
    def __init__(self, screen: StudyScreen) -> None:
        super().__init__()
        self._study_screen = screen
        self._told: set[int] = set()

    def take(self, screen: Screen) -> list[str]:
        lines = []
        study = self._study_screen.study
        best = {trial.number for trial in study.best} if study else set()
        for trial in self._study_screen.trials:
            if trial.state == "running" or trial.number in self._told:
                continue
            self._told.add(trial.number)
            values = ", ".join(f"{name} {value:.5g}" for name, value in trial.values.items())
            said = ", ".join(word for word in (values, trial.reason) if word)
            mark = "" if trial.number not in best else " (on the front)" if len(trial.values) > 1 else " (best so far)"
            lines.append(f"trial {trial.number} {trial.state}: {said}{mark}; {point_text(trial.point)}")
        return [*lines, *super().take(screen)]
