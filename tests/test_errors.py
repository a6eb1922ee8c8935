"""Errors: one tree, a message that can be acted on, and a way across process boundaries."""

from __future__ import annotations

import inspect
import pickle

import pytest

from stars_deploy import errors
from stars_deploy.errors import StarsDeployError, VerificationError

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, StarsDeployError)]


def test_tree():
    assert len(ALL) >= 10
    assert {kind.__name__: kind.exit_code for kind in ALL if kind.exit_code != 2} == {"VerificationError": 1}
    assert VerificationError.__mro__[1] is StarsDeployError


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("file.net", "is empty"), "file.net: is empty"),
        (("--bits", 9, "2 to 8"), "--bits: 9; allowed: 2 to 8"),
        (("a", "b", "c", "d"), "a: b; allowed: c; what to do: d"),
        (("a", "b", "", "d"), "a: b; what to do: d"),
    ],
)
def test_message(parts, message):
    assert str(StarsDeployError(*parts)) == message


@pytest.mark.parametrize("kind", ALL)
def test_survives_pickling(kind):
    error = kind("where", 3, allowed="4", remedy="add one")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind and str(back) == str(error)
    assert (back.where, back.got, back.allowed, back.remedy) == ("where", 3, "4", "add one")
