"""Advantages of StepPO, GRPO, GiGPO and APPO in plain PyTorch, as the published trainers write them.

Written for comparison: loops over steps and token positions that are vectorised over trajectories,
dictionaries from ids to scores for groups, results multiplied by the mask. Masks are int64 and ids
are arrays of Python strings, as those trainers hold them.
"""

import uuid
from collections import defaultdict
from typing import Any

import numpy as np
import torch

Tensors = tuple[torch.Tensor, torch.Tensor]


def masked_whiten(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Over the active tokens; every position is transformed."""
    number = mask.sum()
    mean = (x * mask).sum() / (number + 1e-8)
    variance = (torch.square(x - mean) * mask).sum() / (number + 1e-8)
    return (x - mean) * torch.rsqrt(variance * number / (number - 1) + 1e-8)


def grid_of(trajectory_ids: Any, step_ids: Any) -> tuple[Any, torch.Tensor, int, int]:
    names, trajectory = np.unique(trajectory_ids, return_inverse=True)
    step = torch.as_tensor(np.asarray(step_ids, dtype=np.int64))
    return torch.as_tensor(trajectory), step, len(names), int(step.max()) + 1


@torch.no_grad()
def step_gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, trajectory_ids: Any,
    step_ids: Any, gamma: float, lambda_: float,
) -> Tensors:  # fmt: skip
    trajectory, step, trajectories, steps = grid_of(trajectory_ids, step_ids)
    reward = torch.zeros(trajectories, steps)
    value = torch.zeros(trajectories, steps)
    reward[trajectory, step] = (rewards * mask).sum(dim=-1)
    value[trajectory, step] = values[:, 0]
    reversed_advantages = []
    later, next_value = torch.zeros(trajectories), torch.zeros(trajectories)
    for t in reversed(range(steps)):
        delta = reward[:, t] + gamma * next_value - value[:, t]
        later = delta + gamma * lambda_ * later
        next_value = value[:, t]
        reversed_advantages.append(later)
    grid = torch.stack(reversed_advantages[::-1], dim=1)
    advantages, returns = grid[trajectory, step], (grid + value)[trajectory, step]
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return advantages.unsqueeze(-1) * mask, returns.unsqueeze(-1) * mask


@torch.no_grad()
def token_gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, trajectory_ids: Any,
    step_ids: Any, gamma: float, lambda_: float,
) -> Tensors:  # fmt: skip
    trajectory, step, trajectories, steps = grid_of(trajectory_ids, step_ids)
    length = rewards.shape[-1]
    shape = (trajectories, steps, length)
    reward, value, active = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
    reward[trajectory, step] = rewards
    value[trajectory, step] = values
    active[trajectory, step] = mask.float()
    advantage = torch.zeros(shape)
    later, next_value = torch.zeros(trajectories), torch.zeros(trajectories)
    for s in reversed(range(steps)):
        for t in reversed(range(length)):
            active_t = active[:, s, t]
            delta = reward[:, s, t] + gamma * next_value - value[:, s, t]
            advantage_t = delta + gamma * lambda_ * later
            next_value = value[:, s, t] * active_t + (1 - active_t) * next_value
            later = advantage_t * active_t + (1 - active_t) * later
            advantage[:, s, t] = later
    advantages = advantage[trajectory, step]
    returns = (advantages + values) * mask
    return masked_whiten(advantages, mask), returns


def trajectory_scores(
    rewards: torch.Tensor, mask: torch.Tensor, trajectory_ids: Any, group_ids: Any
) -> tuple[dict[Any, torch.Tensor], dict[Any, list[Any]]]:
    """Score of each trajectory, and the trajectories of each group."""
    scores = (rewards * mask).sum(dim=-1)
    score_of: dict[Any, torch.Tensor] = {}
    members = defaultdict(list)
    for i, name in enumerate(trajectory_ids):
        if name in score_of:
            score_of[name] = score_of[name] + scores[i]
        else:
            score_of[name] = scores[i]
            members[group_ids[i]].append(name)
    return score_of, members


def normalised_scores(
    rewards: torch.Tensor, mask: torch.Tensor, trajectory_ids: Any, group_ids: Any, epsilon: float
) -> torch.Tensor:
    """(score - mean) / (std + epsilon) of its group, a row."""
    score_of, members = trajectory_scores(rewards, mask, trajectory_ids, group_ids)
    normalised = {}
    for names in members.values():
        group = torch.stack([score_of[name] for name in names])
        mean, std = group.mean(), group.std()
        if len(names) == 1:
            mean, std = torch.tensor(0.0), torch.tensor(1.0)
        for name in names:
            normalised[name] = (score_of[name] - mean) / (std + epsilon)
    return torch.stack([normalised[name] for name in trajectory_ids])


@torch.no_grad()
def grpo(
    rewards: torch.Tensor, mask: torch.Tensor, trajectory_ids: Any, group_ids: Any,
    epsilon: float = 1e-6,
) -> Tensors:  # fmt: skip
    scores = normalised_scores(rewards, mask, trajectory_ids, group_ids, epsilon)
    advantages = scores.unsqueeze(-1) * mask
    return advantages, advantages


@torch.no_grad()
def step_returns(
    rewards: torch.Tensor, mask: torch.Tensor, trajectory_ids: Any, step_ids: Any, gamma: float
) -> torch.Tensor:
    trajectory, step, trajectories, steps = grid_of(trajectory_ids, step_ids)
    grid = torch.zeros(trajectories, steps)
    grid[trajectory, step] = (rewards * mask).sum(dim=-1)
    for t in reversed(range(steps - 1)):
        grid[:, t] += gamma * grid[:, t + 1]
    return grid[trajectory, step]


def normalised_steps(returns: torch.Tensor, cluster_of: Any, epsilon: float) -> torch.Tensor:
    """(return - mean) / (std + epsilon) of its cluster, a row; a cluster of one is its own mean."""
    members = defaultdict(list)
    for i, name in enumerate(cluster_of):
        members[name].append(returns[i])
    mean, std = {}, {}
    for name, scores in members.items():
        cluster = torch.stack(scores)
        mean[name] = cluster.mean()
        std[name] = cluster.std() if len(scores) > 1 else torch.tensor(1.0)
    scores = returns.clone()
    for i, name in enumerate(cluster_of):
        scores[i] = (returns[i] - mean[name]) / (std[name] + epsilon)
    return scores


@torch.no_grad()
def gigpo(
    rewards: torch.Tensor, mask: torch.Tensor, anchors: Any, trajectory_ids: Any, group_ids: Any,
    step_ids: Any, gamma: float, weight: float = 1.0, epsilon: float = 1e-6,
) -> Tensors:  # fmt: skip
    episode = normalised_scores(rewards, mask, trajectory_ids, group_ids, epsilon)
    returns = step_returns(rewards, mask, trajectory_ids, step_ids, gamma)
    rows_of_group = defaultdict(list)
    for i, name in enumerate(group_ids):
        rows_of_group[name].append(i)
    cluster_of = np.empty(len(group_ids), dtype=object)
    for rows in rows_of_group.values():
        clusters = defaultdict(list)
        for i in rows:
            clusters[anchors[i]].append(i)
        for cluster in clusters.values():
            name = str(uuid.uuid4())
            for i in cluster:
                cluster_of[i] = name
    step_scores = normalised_steps(returns, cluster_of, epsilon)
    advantages = (episode + weight * step_scores).unsqueeze(-1) * mask
    return advantages, advantages


def zscore(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean()) / (x.std(unbiased=False) + 1e-6)


@torch.no_grad()
def appo_scores(
    current: torch.Tensor, behavior: torch.Tensor, entropy: torch.Tensor, mask: torch.Tensor,
    gamma: float, clip: float,
) -> Tensors:  # fmt: skip
    """Branching score of each token, and whether both factors are positive."""
    length = current.shape[-1]
    ratio = (current - behavior) * mask
    future = torch.zeros_like(ratio)
    later = torch.zeros(len(ratio))
    for t in reversed(range(length)):
        later = ratio[:, t] + gamma * later
        future[:, t] = later
    weight = torch.exp(future.clamp(-20, 20)).clamp(1 - clip, 1 + clip)
    score = torch.zeros_like(weight)
    strict = torch.zeros(weight.shape, dtype=torch.bool)
    for i in range(len(weight)):
        active = mask[i].bool()
        if not active.any():
            continue
        by_entropy, by_weight = zscore(entropy[i][active]), zscore(weight[i][active])
        product = by_entropy * by_weight
        score[i][active] = product
        strict[i][active] = (by_entropy > 0) & (by_weight > 0) & (product > 0)
    return score, strict
