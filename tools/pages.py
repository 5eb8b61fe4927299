"""Rewrite every reference page that is generated: `python -m tools.pages` (`make pages`)."""


def write_all():
    pass


if __name__ == "__main__":
    write_all()
