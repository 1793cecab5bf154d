"""Documents that are made by scripts are up to date."""

import pytest
from helpers.scripts import load_script

from captioner.api import DEFAULT_WEIGHTS


@pytest.mark.skipif(not DEFAULT_WEIGHTS.exists(), reason="no model ships with this copy")
def test_the_model_card_is_up_to_date():
    script = load_script("scripts/model_card.py")
    assert script.PAGE.read_text("utf-8") == script.page(), "run python scripts/model_card.py"
