"""What a type checker knows of the settings is what there is."""

from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
from sqlalchemy import make_url

from sa_railway import Profile
from sa_railway.config.options import _dialect_arguments
from sa_railway.config.profile import PROFILES
from sa_railway.config.settings import DialectArguments, Fields, ProfileName

URLS = ["postgresql+psycopg2://", "postgresql+psycopg://", "postgresql+asyncpg://", "sqlite://"]


def test_the_fields_are_those_of_a_profile():
    hints = get_type_hints(Profile)

    assert get_type_hints(Fields) == {field.name: hints[field.name] for field in fields(Profile)}
    assert set(get_args(ProfileName)) == set(PROFILES)


@pytest.mark.parametrize("url", URLS)
def test_what_a_dialect_takes_is_listed(url):
    found = {name for name in _dialect_arguments(make_url(url)) if not name.startswith("_")}

    assert found <= set(DialectArguments.__annotations__)
