"""Words as the rules count them."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.stages.words import tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don't, really.", ["I", "do", "n't", ",", "really", "."]),
        (
            "We'll see what it’s worth; she cannot.",
            ["We", "'ll", "see", "what", "it", "’s", "worth", ";", "she", "can", "not", "."],
        ),
        ("The dogs' owner's dog, 'twas said", ["The", "dogs", "'", "owner", "'s", "dog", ",", "'", "twas", "said"]),
        ("give 'em what 's theirs", ["give", "'em", "what", "'s", "theirs"]),
        ("1,000.5 or 3.", ["1,000.5", "or", "3", "."]),
        ("Dr. J. R. Ewing of the U.S. left.", ["Dr.", "J.", "R.", "Ewing", "of", "the", "U.S.", "left", "."]),
        ("(e.g. this)...", ["(", "e.g.", "this", ")", "..."]),
        ("NASA. It ended.Then", ["NASA", ".", "It", "ended", ".", "Then"]),
        ("well-known (x) -- …", ["well", "-", "known", "(", "x", ")", "--", "…"]),
        ("this—that, and/or 10-12; -1", ["this", "—", "that", ",", "and", "/", "or", "10", "-", "12", ";", "-1"]),
        ("os.path.join(a,b) from https://a.b/c-d.", ["os.path.join(a", ",", "b", ")", "from", "https://a.b/c-d", "."]),
        (".5 of .NET", [".5", "of", ".NET"]),
        ("json.JSONDecoder.decode", ["json.JSONDecoder.decode"]),
        ("हिन्दी है।", ["हिन्दी", "है", "।"]),
        ("snake_case...", ["snake_case", "..."]),
        ("\"''So!''\"", ['"', "''", "So", "!", "''", '"']),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert list(tokens(text)) == expected


@given(st.lists(st.sampled_from([*"aZ1.,'’-/:=(_ \n#雨…$+", "n't", "...", "can", "not"]), max_size=80).map("".join))
def test_no_character_is_lost_or_moved(text: str) -> None:
    assert "".join(tokens(text)) == "".join(text.split())
    assert list(tokens(text)) == list(chain.from_iterable(map(tokens, text.split())))


@pytest.mark.parametrize("unit", ["(", ".", "'", "a-", ".a", "'s", "a'", "a.", "-=", "://", "(a)", "n't"])
def test_a_long_piece_is_split_like_a_short_one(unit: str) -> None:
    # What is quadratic in its length would take hours.
    assert "".join(tokens(unit * 300_000)) == unit * 300_000
