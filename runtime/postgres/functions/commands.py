"""What one node asks of others, and their answers."""

COMMANDS = """
create function {s}.asked(
  p_node bigint, p_token bigint, p_kind text, p_arguments text, p_wants text, p_upto bigint, p_target bigint)
returns table (id bigint, name text, upto bigint, held boolean) language plpgsql as $$
#variable_conflict use_column
declare mine boolean; last bigint;
begin
  -- None is reaped from here on, and none was half reaped.
  perform 1 from {s}.node n where p_target is null or n.id = p_target order by n.id for key share;
  if p_wants is not null then mine := {s}.wanted(p_node, p_wants); end if;
  last := coalesce(p_upto, (select max(m.id) from {s}.message m), 0);
  if not exists (select from {s}.command c where c.token = p_token) then
    insert into {s}.command (token, target, asker, kind, arguments, upto)
      select p_token, n.id, p_node, p_kind, p_arguments, last from {s}.node n
      where n.id <> p_node and n.id > 0 and (p_target is null or n.id = p_target);
    perform {s}.tell(-c.target) from {s}.command c where c.token = p_token;
  end if;
  return query select null::bigint, null::text, last, mine;
  return query select c.id, n.name, c.upto, mine from {s}.command c left join {s}.node n on n.id = c.target
    where c.token = p_token;
end $$;

create function {s}.said(p_id bigint, p_answer text, p_failed boolean) returns void language plpgsql as $$
declare v_asker bigint;
begin
  update {s}.command c set answer = p_answer, failed = p_failed where c.id = p_id and c.answer is null
    returning c.asker into v_asker;
  if not found then return; end if;  -- it was reaped meanwhile, and that is the answer
  if exists (select from {s}.node n where n.id = v_asker) then
    perform {s}.tell(-v_asker);
  else
    delete from {s}.command c where c.id = p_id;  -- nobody waits for it
  end if;
end $$;

create function {s}.forgotten(p_token bigint) returns void language sql as $$
  delete from {s}.command c where c.token = p_token and c.answer is not null;
  update {s}.command c set asker = 0 where c.token = p_token $$;

create function {s}.commands_gone(p_nodes bigint[]) returns void language plpgsql as $$
begin
  update {s}.command c set answer = 'null', failed = true where c.target = any(p_nodes) and c.answer is null;
  perform {s}.tell(-c.asker) from {s}.command c where c.target = any(p_nodes) group by c.asker;
  delete from {s}.command c where c.answer is not null and not exists (select from {s}.node n where n.id = c.asker);
end $$;
"""
