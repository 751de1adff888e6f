"""`flask --app app settings`: what the service runs with; secrets are hidden."""

from __future__ import annotations

import os
from dataclasses import fields

import click
from flask.cli import with_appcontext

from service import service
from settings import given, settings_file, without_passwords


@click.command("settings")
@with_appcontext
def show_settings() -> None:
    """Show the settings in force, and where each comes from."""
    in_force, in_file = service().settings, settings_file()
    for field in fields(in_force):
        name = field.name.upper()
        click.echo(f"{name}={_text(getattr(in_force, field.name))}  # {_source(field.name, in_file)}")


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return without_passwords(str(value).removesuffix(".0") if isinstance(value, float) else str(value))


def _source(name: str, in_file: dict[str, str]) -> str:
    variable = name.upper()
    if given(name, {**in_file, **os.environ}) is None:
        return "default"
    # The command flask puts what is in the file into the environment before anybody can look.
    return ".env" if os.environ.get(variable, in_file.get(variable)) == in_file.get(variable) else "environment"
