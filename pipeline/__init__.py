"""The commands that users run, and the Ray, Optuna and MLflow code behind them."""
