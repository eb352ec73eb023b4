"""`fourm env`: what a report of a bug needs to know of this machine."""

from fourm_cli.console import print_json, print_table, size_text
from fourm_cli.options import PLAIN_JSON, with_options


@with_options(as_json=PLAIN_JSON)
def env(*, as_json: bool = False) -> None:
    """Print versions, devices, memory, caches and environment variables: what a bug report needs, no secrets.

    Examples:
        fourm env
        fourm env --json
    """
    from fourm.runs.machine import describe_machine

    facts = describe_machine().to_json()
    if as_json:
        print_json(facts)
        return
    rows = [
        (group, name, size_text(value) if isinstance(value, int) else value)
        for group, of_group in facts.items()
        for name, value in of_group.items()
    ]
    print_table(("what", "name", "value"), rows)
