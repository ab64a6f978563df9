"""From saved results to the page: tables, figures, and what a notebook needs to show them."""
