"""What a lab has to say: this machine cannot run one, or one could not be made as asked."""

from __future__ import annotations

from lattica.errors import LatticaError

APT = "apt-get install iproute2 nftables gcc libc6-dev"
"""All that a lab needs of a Debian machine, in one line."""


class Unavailable(LatticaError):
    """This machine cannot run the lab; the message says what is missing, `do_next` how to get it."""

    summary = "this machine cannot run a network lab"

    @property
    def reason(self) -> str:
        """Both in one line, for pytest.skip."""
        return f"{self.message}; {self.do_next}" if self.do_next else self.message


class LabError(LatticaError):
    """A program of the machine refused a step, or the lab has nothing of that name."""

    summary = "the lab could not do what was asked"
