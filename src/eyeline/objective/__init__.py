"""What is minimised: the weighted sum of a method's losses."""

from eyeline.objective.method import Method, Term, method_name, resolve_method
from eyeline.objective.schedules import Weight, loss_rates
from eyeline.objective.terms import Objective, Terms

__all__ = ["Method", "Objective", "Term", "Terms", "Weight", "loss_rates", "method_name", "resolve_method"]
