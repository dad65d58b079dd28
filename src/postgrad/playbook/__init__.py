"""Agents that learn from experience by growing their own context: "Agentic Context Engineering" (ACE, arXiv 2510.04618)."""
