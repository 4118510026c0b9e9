"""Thinking: how long a model reasons, in how many chains, and what it costs; over local models and endpoints alike."""

from lengthwise.thinking._think import Thought, think
from lengthwise.thinking.answers import answer_in, votes
from lengthwise.thinking.chain import ABILITIES, Chain, Messages, Piece, Sampler, Settings, Tags
from lengthwise.thinking.registry import all_strategies, check, format_strategies, parse, refusals
from lengthwise.thinking.strategy import PARTS, Strategy, StrategySpec
from lengthwise.thinking.work import Solved, Spent, State, Work, Written

__all__ = [
    "ABILITIES",
    "PARTS",
    "Chain",
    "Messages",
    "Piece",
    "Sampler",
    "Settings",
    "Solved",
    "Spent",
    "State",
    "Strategy",
    "StrategySpec",
    "Tags",
    "Thought",
    "Work",
    "Written",
    "all_strategies",
    "answer_in",
    "check",
    "format_strategies",
    "parse",
    "refusals",
    "think",
    "votes",
]
