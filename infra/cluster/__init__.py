"""Kubernetes: renders every manifest from infra/settings.yaml, and says what a cluster lacks."""
