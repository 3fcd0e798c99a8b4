"""What readings mean, from whichever source: the temperature and the power that count."""

from __future__ import annotations

COLDEST = -200.0  # zones of powered-off units report -256
CONSTANT_ZONES = ("pmic",)  # report one constant, so no maximum may see them
TOTAL_RAILS = {"VDD_IN": "module_input", "POM_5V_IN": "module_input", "VIN": "board_input"}


def total_power(rails: dict[str, float]) -> tuple[float, str, str] | None:
    """Total power in mW, its scope and the rails it is made of; None without rails.

    Where one rail feeds the whole module or board, the others are parts of it and are not added.
    """
    for name, scope in TOTAL_RAILS.items():
        if name in rails:
            return rails[name], scope, name
    return (sum(rails.values()), "sum_of_rails", "+".join(rails)) if rails else None


def junction(temps: dict[str, float]) -> float | None:
    """The hottest temperature that counts: the zone tj where there is one, else the maximum without the PMIC's."""
    for name, value in temps.items():
        if name.lower().replace("_", "-").split("-")[0] == "tj":
            return value
    real = [value for name, value in temps.items() if not name.lower().startswith(CONSTANT_ZONES)]
    return max(real) if real else None
