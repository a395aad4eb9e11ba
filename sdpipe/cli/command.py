"""What every command does with its arguments before they are its options."""

from itertools import pairwise
from typing import Any

from typer.core import TyperCommand, TyperOption


class Command(TyperCommand):
    """Refuses an option without its value, also where another stands in its place:
    `--seamless --out a.png`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises a usage error, or parses as usual; after `--` nothing is an option."""
        options = [p for p in self.params if isinstance(p, TyperOption)]
        known = {name for option in options for name in (*option.opts, *option.secondary_opts)}
        wanted = {name: o.metavar for o in options if not o.is_flag for name in o.opts}
        typed = args[: args.index("--")] if "--" in args else [*args, None]
        for name, value in pairwise(typed):
            if name in wanted and (value is None or value in known):
                but = f", but {value} is another option" if value else ""
                ctx.fail(f"{name} needs a value, {wanted[name]}{but}")
        return super().parse_args(ctx, args)
