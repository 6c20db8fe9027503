"""Creates the searches' account in MLflow; runs in its pod, which knows both passwords.

    kubectl exec -i deployment/mlflow -- python - < infra/cluster/scripts/mlflow_account.py

Passwords go by the environment: a command line can be read by others.
"""

import os

from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client

os.environ["MLFLOW_TRACKING_USERNAME"] = "admin"
os.environ["MLFLOW_TRACKING_PASSWORD"] = os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"]
client = get_app_client("basic-auth", tracking_uri=os.environ.get("URL", "http://localhost:5000"))
user, password = os.environ["ADU_SEARCH_USERNAME"], os.environ["ADU_SEARCH_PASSWORD"]
try:
    client.create_user(user, password)
except MlflowException as error:
    if error.error_code != "RESOURCE_ALREADY_EXISTS":
        raise
    client.update_user_password(user, password)
print(f"MLflow knows user {user}")
