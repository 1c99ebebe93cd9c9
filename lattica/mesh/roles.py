"""What a peer may do. Certificates carry it as a number, people read and type it as words."""

from __future__ import annotations

from enum import Flag

from lattica.errors import ConfigError


class Role(Flag):
    """Numbers are only ever appended: they stand in certificates."""

    EXECUTE = 1  # others may run code here
    SUBMIT = 2  # it may run code on others
    STORE = 4  # it holds objects for others
    RELAY = 8  # it carries what others send each other
    ADMIN = 16  # it issues, revokes, drains


MEMBER = Role.EXECUTE | Role.SUBMIT | Role.STORE | Role.RELAY
"""What a ticket gives unless it says otherwise."""
EVERYTHING = MEMBER | Role.ADMIN
NOTHING = Role(0)


def parse_roles(text: str) -> Role:
    """The roles named in `text`: "execute,relay"; "all" means every one, `admin` too.

    Raises ConfigError for unknown words and for none at all.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name != "all" and name.upper() not in Role.__members__]
    if unknown or not names:
        wrong = f"there is no role {', '.join(unknown)}" if unknown else "no role is named"
        raise ConfigError(f"{wrong:.200}", do_next=f"choose from {roles_text(EVERYTHING)}, with commas between; or all")
    roles = NOTHING
    for name in names:
        roles |= EVERYTHING if name == "all" else Role[name.upper()]
    return roles


def roles_text(roles: Role) -> str:
    """As `parse_roles` reads it; "none" for none."""
    return ",".join(str(role.name).lower() for role in roles) or "none"


def roles_of(number: int) -> Role:
    """The roles in a certificate; those of a later release are left out."""
    return Role(number & EVERYTHING.value)
