"""What is measured: speed, cost, quality, and the page that shows it."""
