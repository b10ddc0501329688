"""The command line as tests use it: run in this process, and refusals as users should see them."""

from typing import Any

from click.testing import CliRunner, Result

from sqt_fast.cli import main


def sqt(*arguments: Any, **options: Any) -> Result:
    """Run the program. Anything that is not an exit code is a bug and fails the test. options: of ``CliRunner``."""
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False, **options)


def refused(result: Result, code: int = 2, *, after: tuple[str, ...] = ()) -> str:
    """Check that ``result`` is a refusal: one line, which is returned, and nothing on stdout.

    after: how lines begin that may come before it, beside the usage.
    """
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 or lines[0].startswith(("Usage: ", *after))
    return lines[-1]
