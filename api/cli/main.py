"""The `manta` command. Nothing heavy is imported before the command that needs it runs."""

from api.cli import data_commands, export, jobs, machine_commands, tune_commands  # noqa: F401  (they register their commands)
from api.cli.app import app


def main() -> None:
    """Entry point of the `manta` command."""
    app()


if __name__ == "__main__":
    main()
