"""Loss terms: pure functions first, thin modules second."""
