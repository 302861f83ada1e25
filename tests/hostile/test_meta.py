"""Every attack that we know of has a test of its name; the numbers are those of their list."""

import re
from pathlib import Path

ATTACKS = 22


def test_each_attack_of_the_list_has_a_test():
    found = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        found |= {int(number) for number in re.findall(r"^def test_row_(\d\d)_", path.read_text(), re.MULTILINE)}

    assert found == set(range(1, ATTACKS + 1))
