"""Tests of the journal: errors per thread, and the messages that are logged."""

from __future__ import annotations

import logging
import threading

import pytest

from tests.runtime.cuda.fake_runtime import FakeRuntime
from tests.runtime.tensorrt.fake_api import FakeApi, Severity
from tokenfold.runtime.tensorrt import journal as journal_module
from tokenfold.runtime.tensorrt.journal import Journal
from tokenfold.runtime.tensorrt.variant import TensorRTVariant


@pytest.fixture
def variant() -> TensorRTVariant:
    return TensorRTVariant("tensorrt", FakeApi(FakeRuntime()))


def test_pop_error_returns_the_first_error(variant: TensorRTVariant) -> None:
    journal = Journal(variant)
    assert journal.pop_error() is None
    journal.logger.log(Severity.WARNING, "no error")
    for line in ("[a.cpp::1] Error\n  Code 2:\tthis ", "and so this"):
        journal.logger.log(Severity.ERROR, line)
    assert journal.pop_error() == "[a.cpp::1] Error Code 2: this"
    assert journal.pop_error() is None
    journal.logger.log(Severity.INTERNAL_ERROR, "worse")
    assert journal.pop_error() == "worse"


def test_journals_of_a_variant_share_a_logger(variant: TensorRTVariant) -> None:
    first, second = Journal(variant), Journal(variant)
    assert first.logger is second.logger
    first.logger.log(Severity.ERROR, "failure")
    assert second.pop_error() == "failure"
    assert Journal(TensorRTVariant("tensorrt", FakeApi(FakeRuntime()))).logger is not first.logger


def test_errors_belong_to_the_calling_thread(variant: TensorRTVariant) -> None:
    journal = Journal(variant)
    thread_errors: list[str | None] = []

    def call() -> None:
        journal.logger.log(Severity.ERROR, "there")
        thread_errors.append(journal.pop_error())

    journal.logger.log(Severity.ERROR, "here")
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert thread_errors == ["there"]
    assert journal.pop_error() == "here"


def test_the_number_of_kept_errors_is_limited(variant: TensorRTVariant) -> None:
    journal = Journal(variant)
    for number in range(1000):
        journal.logger.log(Severity.ERROR, f"{number}")
    assert len(journal.logger.errors.lines) < 100
    assert journal.pop_error() == "0"


def test_a_missing_gpu_is_no_error_when_building_ahead(
    variant: TensorRTVariant, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    line = "[checkMacros.cpp] Error Code 1: Cuda Runtime (cudaError 35: no driver)"
    journal = Journal(variant)
    journal.logger.log(Severity.ERROR, line)
    assert journal.pop_error() == line
    ahead_journal = Journal(variant, ahead=True)
    for severity, text in ((Severity.ERROR, line), (Severity.VERBOSE, "much")):
        ahead_journal.logger.log(severity, text)
    assert ahead_journal.pop_error() is None
    ahead_journal.logger.log(Severity.ERROR, "Error Code 2: something else")
    assert ahead_journal.pop_error() == "Error Code 2: something else"
    assert {record.name for record in caplog.records} == {journal_module.__name__}
    assert [record.levelno for record in caplog.records] == [
        logging.ERROR,
        logging.DEBUG,
        logging.DEBUG,
        logging.ERROR,
    ]
