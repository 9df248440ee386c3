"""Words are found out about once, and never more of them are kept than there is room for."""

from data.remembered import Remembered


def test_a_word_is_found_out_about_once_until_there_are_too_many() -> None:
    asked: list[str] = []

    def length(word: str) -> int:
        asked.append(word)
        return len(word)

    lengths = Remembered(length, most=100)
    assert list(lengths.of(["a", "bb", "a", "bb", "a"])) == [1, 2, 1, 2, 1]
    assert asked == ["a", "bb"]
    for start in range(0, 2000, 50):
        text = [f"w{start + i}" for i in range(50)]
        assert list(lengths.of(text)) == list(map(len, text))
        assert len(lengths) <= 150  # what is kept between texts, and one text
    assert list(lengths.of(["a"])) == [1]
    assert asked.count("a") == 2


def test_a_long_word_is_not_kept() -> None:
    lengths = Remembered(len)
    assert list(lengths.of(["x" * 1000, "x" * 64])) == [1000, 64]
    assert list(lengths) == ["x" * 64]
