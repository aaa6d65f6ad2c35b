// Reads [{language, text}] on stdin; writes, for each, the places that do not parse and the names that are used:
// {errors: [[from, to]], nodes: {name of the grammar's node: [source texts]}}.
import { readFileSync } from 'node:fs';
import { parser as logql } from '@grafana/lezer-logql';
import { parser as promql } from '@prometheus-io/lezer-promql';

const parsers = { logql, promql };

function parsed({ language, text }) {
  const errors = [];
  const nodes = {};
  parsers[language].parse(text).iterate({
    enter(node) {
      if (node.type.isError) errors.push([node.from, node.to]);
      (nodes[node.name] ??= []).push(text.slice(node.from, node.to));
    },
  });
  return { errors, nodes };
}

process.stdout.write(JSON.stringify(JSON.parse(readFileSync(0, 'utf8')).map(parsed)));
