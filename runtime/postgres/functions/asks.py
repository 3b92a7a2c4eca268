"""Questions to persons: asked, waited for, answered and withdrawn."""

ASKS = """
create function {s}.asks(
  p_id text, p_key text, p_lane text, p_session text, p_route bytea, p_question bytea, p_options bytea, p_keep bytea,
  p_asked_at timestamptz, p_expires_at timestamptz) returns setof {s}.ask
language plpgsql as $$
begin
  for attempt in 1..10 loop  -- one with its key may be asked, or closed, at this moment
    insert into {s}.ask (id, key, lane, session, route, question, options, keep, asked_at, expires_at, state)
      values (p_id, p_key, p_lane, p_session, p_route, p_question, p_options, p_keep, p_asked_at, p_expires_at, 'open')
      on conflict do nothing;
    return query select * from {s}.ask a where a.id = p_id
      or a.key = p_key and a.lane = p_lane and coalesce(a.session, '') = coalesce(p_session, '') and a.state = 'open'
      limit 1;
    if found then return; end if;
  end loop;
  raise exception 'lanes: the key of a question changes hands too often' using errcode = '40001';
end $$;

create function {s}.waits_for(p_node bigint, p_ids bigint[], p_ask text, p_reason text, p_before text[], p_done text[],
  p_token bigint) returns int language plpgsql as $$
declare stands text;
begin
  perform 1 from {s}.session t
    where t.place = any(array(select m.place from {s}.message m where m.id = any(p_ids)))
    order by t.place for update;
  select a.state into stands from {s}.ask a where a.id = p_ask for share;
  update {s}.message m set asked = p_ask where m.id = any(p_ids)
    and (select t.owner from {s}.session t where t.place = m.place) = p_node;
  if stands = 'open' then
    return {s}.ended(p_node, p_ids, 'waiting', p_reason, null, p_before, p_token);
  end if;
  stands := 'asked, and ' || coalesce(stands, 'answered') || ' meanwhile';
  return {s}.ended(p_node, p_ids, 'done', stands, null, p_done, p_token);
end $$;

-- As programs of step 0 call it.
create function {s}.waits_for(p_node bigint, p_ids bigint[], p_ask text, p_reason text, p_before text[], p_done text[])
returns void language sql as $$
  select {s}.waits_for(p_node, p_ids, p_ask, p_reason, p_before, p_done, null) $$;

create function {s}.withdrawn(p_session text, p_reason text) returns void language plpgsql as $$
declare closed text[];
begin
  with a as (update {s}.ask a set state = 'withdrawn', ended_at = clock_timestamp()
      where a.session = p_session and a.state = 'open' returning a.id)
    select array_agg(a.id) into closed from a;
  -- A statement of its own, so that it sees a message that began to wait while the questions were being locked.
  update {s}.message m set state = 'cancelled', ended_at = clock_timestamp(), reason = p_reason
    where m.asked = any(closed) and m.state = 'waiting';
end $$;

create function {s}.answered(
  p_ask text, p_state text, p_value bytea, p_by text, p_place text, p_rank int, p_lane text, p_session text,
  p_body bytea, p_route bytea, p_dedupe text, p_repeat int, p_token bigint, p_node bigint, p_claims boolean)
returns table (id bigint, is_new boolean, same_body boolean, state text, owner bigint, before bigint[])
language plpgsql as $$
#variable_conflict use_column
declare r record;
begin
  insert into {s}.session (place) values (p_place) on conflict do nothing;
  perform 1 from {s}.session t
    where t.place = any(array(select m.place::text from {s}.message m where m.asked = p_ask) || p_place)
    order by t.place for update;
  update {s}.ask a set state = p_state, value = p_value, by = p_by, ended_at = clock_timestamp(), answer = p_token
    where a.id = p_ask and a.state = 'open';
  if not found and not exists (select from {s}.ask a where a.id = p_ask and a.answer = p_token) then
    if left(p_place, 2) = 'm:' then
      delete from {s}.session t where t.place = p_place and t.pending = 0;
    end if;
    return;
  end if;
  select * into r from {s}.accept(p_place, p_rank, p_lane, p_session, null, null, 'queue', p_body, p_route, p_dedupe,
    ''::bytea, p_repeat, true, null, p_ask, p_token, p_node, p_claims);
  update {s}.message m set state = 'done', ended_at = clock_timestamp(),
      reason = p_state || ' by message ' || r.id where m.asked = p_ask and m.state = 'waiting';
  return query select r.id, r.is_new, r.same_body, r.state, r.owner, r.before;
end $$;
"""
