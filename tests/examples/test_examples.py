"""The examples run as they are, and their explanations name the known causes."""

import pytest

from examples import advertising, customer_service, financial_risk, own_log


def test_a_log_of_ones_own_becomes_a_report(tmp_path):
    page = own_log.main(str(tmp_path)).read_text(encoding="utf-8")
    assert "c0" in page
    assert "jersey" in page


def test_a_reopened_ticket_explains_its_escalation(tmp_path):
    assert customer_service.main(str(tmp_path)) > 1


@pytest.mark.slow
def test_the_channel_that_works_gets_most_of_the_credit(tmp_path):
    shares = advertising.main(str(tmp_path))
    assert max(shares, key=shares.get) == "email"


@pytest.mark.slow
def test_an_alarm_of_a_taken_over_account_is_explained(tmp_path):
    assert 0 < financial_risk.main(str(tmp_path), epochs=1) < 1
